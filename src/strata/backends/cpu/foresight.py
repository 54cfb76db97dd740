"""Whether a layer's experts can be told before its attention: by the norm and the router of their
logits, from what goes into the layer."""

from __future__ import annotations

from strata.program import Op, Program
from strata.program.ops import expert_inputs
from strata.records import dataclass

_NORMS = {"rms_norm": 1, "layer_norm": 2}
"""Kinds of norms, by their numbers in csrc/runtime/nodes.h; 0 is none."""


@dataclass(frozen=True)
class Foresight:
    """The first ``experts`` Op of a Segment, and what is made of the Segment's input to tell them:
    a norm (its kind, weights and epsilon), and the router's product."""

    experts: Op
    norm: int
    weight: str | None
    shift: str | None
    epsilon: float
    router: str
    bias: str | None


def foresight(program: Program) -> Foresight | None:
    """What tells the experts; None where a router reads something else than a norm of a value as
    wide as the input, which attention then has only been added to."""
    made = {op.output: op for op in program.ops}
    experts = next((op for op in program.ops if op.kind == "experts"), None)
    if experts is None or len(program.inputs) != 1 or experts.attrs["shared_by"] != 1:
        return None
    product = made.get(expert_inputs(experts)["logits"])
    if product is None or product.kind != "matmul":
        return None
    x, router, *bias = product.inputs
    if len(program.values[router].shape) != 2:
        return None
    source = program.inputs[0]
    norm = made.get(x)
    kind, weights, epsilon, read = 0, [], 0.0, x
    if norm is not None and norm.kind in _NORMS:
        read, *weights = norm.inputs
        kind, epsilon = _NORMS[norm.kind], norm.attrs["eps"]
        width = program.values[read].width
        if not weights and norm.attrs["group"] != width:
            return None
        if weights and program.values[weights[0]].shape != (width,):
            return None
    elif x != source:
        return None
    if program.values[read].shape != program.values[source].shape:
        return None
    weight, shift = (*weights, None, None)[:2]
    return Foresight(experts, kind, weight, shift, epsilon, router, bias[0] if bias else None)
