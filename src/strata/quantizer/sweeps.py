"""A text through a model one Segment after the other: only one Segment's weights are in memory, and
whoever watches sees what each matrix is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, NO_BLOCK, Span, Step
from strata.backends.reference.backend import OPS, ReferenceBackend
from strata.backends.reference.experts import experts
from strata.backends.reference.state import ReferenceState
from strata.program import Model, Segment
from strata.program.ops import Op
from strata.records import dataclass

Floats = NDArray[np.float32]
Seen = Callable[[str, int, str, Floats], None]
"""Told the name of a weight, which of its matrices (experts), what the value is called that it
multiplies (weights of one input hear the same name), and its rows."""
_MULTIPLY = ("matmul", "experts")


@dataclass
class Window:
    """A piece of text of its own, and what the Segments so far have made of it."""

    tokens: NDArray[np.int32]
    values: Mapping[str, Floats]


def windows_of(
    tokens: Sequence[int], context: int, chunks: int | None, bos: int | None
) -> list[Window]:
    """Windows of ``context`` tokens, each beginning with ``bos`` if there is one; a rest is left
    out."""
    count = len(tokens) // context
    count = count if chunks is None else min(count, chunks)
    made = []
    for number in range(count):
        part = np.array(tokens[number * context : (number + 1) * context], np.int32)
        if bos is not None:
            part[0] = bos
        made.append(Window(part, {}))
    return made


class Sweep:
    """Runs windows through Segments in numpy, some windows at a time on threads of their own."""

    def __init__(self, model: Model, context: int, threads: int, logits_every: int = 1) -> None:
        self.model = model
        self._every = logits_every
        blocks = tuple(2 if g.recurrent else -(-context // KV_BLOCK) for g in model.groups)
        backend = ReferenceBackend()
        self._states = [backend.state_cache(model.state, blocks) for _ in range(threads)]
        self._recurrent = [group.recurrent for group in model.groups]
        self.threads = threads

    def through(
        self,
        segment: Segment,
        weights: Mapping[str, Floats],
        windows: Sequence[Window],
        see: Callable[[int], Seen] | None = None,
        *,
        keep: bool = True,
        whole: bool = False,
    ) -> list[dict[str, Floats]]:
        """Run a Segment over all windows; their values become its outputs if ``keep``, which are
        returned in any case. ``see`` gives each window's watcher. Of the last Segment nothing is
        computed behind its last product's input unless ``whole``."""
        free = list(self._states)

        def one(number: int) -> dict[str, Floats]:
            state = free.pop()
            try:
                watch = None if see is None else see(number)
                return self._run(segment, weights, windows[number], state, watch, whole)
            finally:
                free.append(state)

        with ThreadPoolExecutor(self.threads) as pool:
            made = list(pool.map(one, range(len(windows))))
        if keep:
            for window, values in zip(windows, made, strict=True):
                window.values = values
        return made

    def values(
        self, segment: Segment, weights: Mapping[str, Floats], window: Window
    ) -> dict[str, Floats]:
        """All values of a Segment for one window, by their inner names."""
        kept: dict[str, Floats] = {}
        self._run(segment, weights, window, self._states[0], None, True, kept)
        return kept

    def _run(
        self,
        segment: Segment,
        weights: Mapping[str, Floats],
        window: Window,
        state: ReferenceState,
        watch: Seen | None,
        whole: bool,
        kept: dict[str, Floats] | None = None,
    ) -> dict[str, Floats]:
        program = segment.program
        step = self._step(window.tokens)
        values: dict[str, Floats] = {**weights, **{n: window.values[n] for n in program.inputs}}
        last = segment is self.model.segments[-1] and not whole
        end = max((i for i, op in enumerate(program.ops) if op.kind in _MULTIPLY), default=-1)
        for number, op in enumerate(program.ops):
            operands = [values[name] for name in op.inputs]
            if watch is not None and op.kind == "matmul":
                x, weight = operands[0], operands[1]
                if weight.ndim == 3:
                    for g, rows in enumerate(np.split(x, len(weight), axis=1)):
                        watch(op.inputs[1], g, op.inputs[0], rows)
                else:
                    watch(op.inputs[1], 0, op.inputs[0], x)
            if watch is not None and op.kind == "experts":
                names = dict(zip(op.attrs["extras"], op.inputs[4:], strict=True))
                names |= {"up": op.inputs[2], "down": op.inputs[3]}
                _watch_experts(op, operands, names, watch)
            if last and number == end:
                return {}
            values[op.output] = OPS[op.kind](op.attrs, operands, step, state)
        if kept is not None:
            kept.update(values)
        outputs = zip(segment.outputs, program.outputs, strict=True)
        return {outer: values[inner] for outer, inner in outputs}

    def _step(self, tokens: NDArray[np.int32]) -> Step:
        count = len(tokens)
        blocks = np.arange(-(-count // KV_BLOCK), dtype=np.int32)
        slots = np.array([NO_BLOCK, 0], np.int32)
        tables = tuple(slots if fixed else blocks for fixed in self._recurrent)
        rows = np.arange(count, dtype=np.int32)
        logits = rows[self._every - 1 :: self._every]
        return Step(tokens, rows, (Span(0, count, 0, tables),), logits)


def _watch_experts(op: Op, operands: list[Floats], names: Mapping[str, str], watch: Seen) -> None:
    def seen(name: str, e: int, rows: Floats) -> None:
        value = "down" if name == "down" else "up"
        watch(names[name], e, f"{op.output}.{value}", rows)

    experts(op.attrs, operands, seen)


def matrices(segment: Segment) -> Iterator[str]:
    """Names of the weights that something is multiplied with."""
    for op in segment.program.ops:
        if op.kind == "matmul":
            yield op.inputs[1]
        elif op.kind == "experts":
            yield from (op.inputs[2], op.inputs[3])
            yield from (
                name
                for extra, name in zip(op.attrs["extras"], op.inputs[4:], strict=True)
                if extra == "gate"
            )
