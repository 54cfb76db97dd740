"""What calibrating takes: known before it begins, so that a budget is refused and not passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from strata.errors import UsageError
from strata.memory import process_memory
from strata.program import Model, PagedKV, Segment
from strata.quantizer.sweeps import matrices
from strata.sizes import format_size

_FLOAT, _DOUBLE = 4, 8
# Matrices of doubles beside the moments while they are factored: reordered, damped, inverted and
# the factor, and what a library copies of them.
_FACTORING = 6
# Products of rows with themselves that wait for those of earlier windows, beside a thread's own.
_WAITING = 2
_BESIDE = 64 << 20


def calibration_bytes(
    model: Model,
    windows: int,
    context: int,
    threads: int,
    *,
    propagated: bool = False,
    distilled: bool = False,
) -> int:
    """Bytes that a sweep of windows of ``context`` tokens takes at most, beside what the process
    has: a Segment's weights as float32, what each thread's window becomes in it, keys and values,
    where errors are ``propagated`` the moments of all inputs of a Segment, and where rounding is
    ``distilled`` what that moves."""
    threads = min(threads, windows)
    kept = sum(s.kv_heads * (s.k_dim + s.v_dim) for s in model.state if isinstance(s, PagedKV))
    most = 0
    for segment in model.segments:
        weights = [prod(w.shape) * _FLOAT for w in segment.weights]
        # One is read and decoded beside those that are there.
        need = sum(weights) + 2 * max(weights, default=0)
        rows = _rows(segment) * context * _FLOAT
        scores = 3 * _heads(segment) * context * context * _FLOAT
        need += threads * (rows + scores)
        if propagated:
            widths = _inputs(segment)
            widest = max(widths, default=0)
            # Of the rows as they are, and of how they drifted.
            need += 2 * sum(k * k for k in widths) * _DOUBLE + threads * rows
            need += (threads * _WAITING * _FLOAT + _FACTORING * _DOUBLE) * widest * widest
        if distilled:
            # Floats, starts, moves, sums, and rounded ones as they are and as they were best; and
            # gradients of all values.
            need += 8 * sum(weights) + 2 * rows
        most = max(most, need)
    streams = 2 if propagated else 1
    between = 2 * streams * windows * context * model.width * _FLOAT
    return most + between + threads * context * kept * _FLOAT + _BESIDE


def check_room(need: int, memory: int | None) -> None:
    """UsageError where calibrating would take more than ``memory``, that of the whole process."""
    total = need + process_memory().total
    if memory is not None and total > memory:
        raise UsageError(
            f"calibrating takes up to {format_size(total)}, of which {format_size(memory)} is "
            "given: give more, fewer --threads, a shorter --context or --no-gptq, or make an "
            "importance matrix elsewhere (--imatrix)"
        )


def _rows(segment: Segment) -> int:
    """Numbers of a row in all values of a Segment, which stay while it runs."""
    values = segment.program.values.values()
    return sum(v.width for v in values if v.role == "activation" and "R" not in v.shape)


def _heads(segment: Segment) -> int:
    ops = segment.program.ops
    return max((int(op.attrs["heads"]) for op in ops if op.kind == "attention"), default=0)


def _inputs(segment: Segment) -> Sequence[int]:
    """Widths of what matrices are multiplied with, each once; experts have inputs of their own."""
    shapes: Mapping[str, tuple[int, ...]] = {w.name: w.shape for w in segment.weights}
    found: dict[str, int] = {}
    experts: list[int] = []
    for op in segment.program.ops:
        if op.kind == "matmul":
            shape = shapes[op.inputs[1]]
            found[op.inputs[0]] = shape[-1]
    for name in matrices(segment):
        if len(shapes[name]) == 3:
            experts += [shapes[name][-1]] * shapes[name][0]
    return [*found.values(), *experts]
