"""A window over what a model keeps of all positions, beside its first ones, which stay: less KV and
work for other answers, which is declared approximate.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
Positions are those within the cache: a row whose window has left the beginning behind sees it as if
it lay right before the window. The keys of a window keep the distances that they have, so only a
second query has to be turned, and no key.
"""

from __future__ import annotations

from dataclasses import replace

from strata.errors import UsageError
from strata.formats.errors import shown
from strata.program import Model, Op, PagedKV, Program, Segment
from strata.records import dataclass

MOST_SINKS = 512
"""First positions that can stay: attention goes through them in one piece."""

_SINKS = 4
"""As many as the source finds to be enough."""


@dataclass(frozen=True)
class KVWindow:
    """The last ``window`` positions are kept, and the first ``sinks``."""

    window: int
    sinks: int = _SINKS

    @classmethod
    def parse(cls, text: str) -> KVWindow:
        """From ``1024`` or ``1024:4``; UsageError for what is neither."""
        window, colon, sinks = text.partition(":")
        numbers = [window, sinks] if colon else [window]
        if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in numbers):
            raise UsageError(
                f"a KV window is a number of positions such as 1024, or with the first ones that "
                f"stay 1024:4, not {shown(text)}"
            )
        found = cls(*map(int, numbers))
        if found.window < 1 or found.sinks > MOST_SINKS:
            raise UsageError(
                f"a KV window has one position at least, and {MOST_SINKS} first ones at most stay "
                f"beside it, not {found}"
            )
        return found

    def __str__(self) -> str:
        return f"{self.window}:{self.sinks}"


def layers_that_keep_all(model: Model) -> frozenset[int]:
    """Numbers of the layers that keep the KV of all positions. UsageError where rows choose among
    them as the model was trained to."""
    kept = enumerate(model.state)
    if any(isinstance(s, PagedKV) and s.index for s in model.state):
        raise UsageError(
            f"this '{model.architecture}' model chooses itself which keys a row sees: leave "
            "--kv-window and --kv-read out"
        )
    return frozenset(n for n, s in kept if isinstance(s, PagedKV) and not s.window)


def with_kv_window(model: Model, kept: KVWindow, context: int) -> Model:
    """The Model with such a window on every layer that keeps all positions, for ``context`` of
    them, which may be more than it was trained for. UsageError for one that has no such layer."""
    if not model.causal or model.embeds:
        raise UsageError("a KV window is for models that continue texts, and this one sees a whole")
    full = layers_that_keep_all(model)
    if not full:
        raise UsageError(
            f"no layer of this '{model.architecture}' model keeps KV of all positions, which a KV "
            "window could leave out"
        )
    learned = any(op.kind == "add_positions" for s in model.segments for op in s.program.ops)
    if learned and context > model.context_length:
        raise UsageError(
            f"this model has learned {model.context_length} positions, and a context of {context} "
            "has more: a KV window does not change that"
        )
    state = tuple(
        replace(s, window=kept.window, beginning=kept.sinks)
        if n in full and isinstance(s, PagedKV)
        else s
        for n, s in enumerate(model.state)
    )
    segments = tuple(_windowed(segment, full, kept) for segment in model.segments)
    return replace(model, segments=segments, state=state, context_length=context)


def _windowed(segment: Segment, full: frozenset[int], kept: KVWindow) -> Segment:
    program = segment.program
    for op in program.ops:
        if op.kind == "attention" and op.attrs["layer"] in full and not op.attrs["window"]:
            program = _attending(program, op, kept)
    return replace(segment, program=program)


def _attending(program: Program, op: Op, kept: KVWindow) -> Program:
    """The Program with an attention that has the window, and with its second query."""
    attrs = {**op.attrs, "window": kept.window, "beginning": kept.sinks}
    inputs, values, turned = op.inputs, dict(program.values), []
    if kept.sinks:
        names = {op.inputs[0]: op.inputs[0]}
        for each in _turning(program, op.inputs[0]):
            names[each.output] = name = f"{each.output}.beginning"
            values[name] = replace(values[each.output], name=name)
            more = {"limit": kept.window + kept.sinks - 1} if each.kind == "rope" else {}
            sources = tuple(names.get(n, n) for n in each.inputs)
            turned.append(Op(each.kind, sources, name, {**each.attrs, **more}))
        inputs = (*inputs, names[op.inputs[0]])
    at = program.ops.index(op)
    changed = (*turned, Op(op.kind, inputs, op.output, attrs))
    return replace(
        program, ops=(*program.ops[:at], *changed, *program.ops[at + 1 :]), values=values
    )


def _turning(program: Program, query: str) -> list[Op]:
    """The Ops that turn a query by its position, and those between them and the query."""
    wanted, needed = {query}, []
    for op in reversed(program.ops):
        if op.output in wanted:
            needed.append(op)
            wanted.update(op.inputs)
    turned: dict[str, Op] = {}
    for op in reversed(needed):
        if op.kind == "rope" or any(name in turned for name in op.inputs):
            turned[op.output] = op
    return list(turned.values())
