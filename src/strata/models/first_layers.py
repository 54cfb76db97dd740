"""A model that ends early: its first layers with its own head, which guesses for the whole of it.

Source: Zhang et al., "Draft & Verify", arXiv 2309.08168 (self-speculation by leaving out layers).
"""

from __future__ import annotations

from dataclasses import replace

from strata.errors import UsageError
from strata.program import Model


def first_layers(model: Model, count: int) -> Model:
    """The Model without its layers from number ``count`` on; UsageError where there are not more
    of them, or the head needs what a later one gives."""
    layers = [s for s in model.segments[1:-1] if s.name.startswith("layer.")]
    if not 0 < count < len(layers):
        raise UsageError(
            f"this model has {len(layers)} layers: 1 to {len(layers) - 1} of them may guess for it"
        )
    dropped = layers[count:]
    kept = tuple(s for s in model.segments if s not in dropped)
    given = {name for s in kept[:-1] for name in s.outputs}
    if missing := set(kept[-1].program.inputs) - given:
        raise UsageError(f"the head of this model needs {min(missing)} of a later layer")
    used = [
        op.attrs["layer"] for s in kept for op in s.program.ops if op.attrs.get("layer") is not None
    ]
    state = model.state[: 1 + max(used, default=-1)]
    return replace(model, segments=kept, state=state)
