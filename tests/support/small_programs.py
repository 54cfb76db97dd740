"""One-Segment models over in-memory weights, to run the same Program on two backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    KV_BLOCK,
    NO_BLOCK,
    Activations,
    Backend,
    LoadedSegment,
    Span,
    StateCache,
    Step,
)
from strata.backends.kv_types import KVType
from strata.backends.settings import MAX_LOGIT_ROWS
from strata.program import Builder, LayerState, Segment, Weight, state_groups
from strata.quant import BlockType, by_name, dequantize
from strata.quant.encode import quantize

Floats = NDArray[np.float32]


class MemoryWeights:
    """A WeightSource over float32 arrays; those in ``formats`` are kept in such blocks."""

    def __init__(self, arrays: dict[str, Floats], formats: Mapping[str, str] | None = None) -> None:
        self.arrays = {n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()}
        self.formats = formats or {}

    def __call__(self, name: str) -> Weight:
        return Weight(name, self.arrays[name].shape, name)

    def type(self, weight: Weight) -> BlockType:
        return by_name(self.formats.get(weight.source, "F32"))

    def place(self, weight: Weight) -> None:
        """In no file."""

    def expert_places(self, weight: Weight) -> None:
        """In no file."""

    def raw(self, weight: Weight) -> NDArray[np.uint8]:
        matrix = self.arrays[weight.source].reshape(-1, weight.shape[-1])
        return quantize(self.type(weight), matrix).reshape(-1)

    def floats(self, weight: Weight) -> Floats:
        return dequantize(self.type(weight), self.raw(weight), weight.shape)


class Lab:
    """Embeds tokens (rows of ``x``), lets ``body`` build on them, and returns all rows as logits.

    ``body(builder, x) -> y`` sees x [T, width]; y goes out through ``select`` and nothing else.
    """

    def __init__(
        self,
        x: Floats,
        arrays: dict[str, Floats],
        body,
        state: Sequence[LayerState] = (),
        formats: Mapping[str, str] | None = None,
    ):  # type: ignore[no-untyped-def]
        self.x = x
        self.weights = MemoryWeights({"x": x, **arrays}, formats)
        first = Builder("embed", self.weights)
        self.embed = first.build(x=first.embed("x"))
        middle = Builder("layer", self.weights, {"x": ("T", x.shape[1])})
        y = body(middle, "x")
        self.layer: Segment = middle.build(x=y)
        width = self.layer.program.values[y].width
        last = Builder("head", self.weights, {"x": ("T", width)})
        self.head = last.build(logits=last.select("x"))
        self.state = tuple(state)

    def load(self, backend: Backend, kv_type: KVType | None = None) -> Loaded:
        return Loaded(self, backend, kv_type)

    def run(
        self, backend: Backend, cuts: Sequence[int] = (), kv_type: KVType | None = None
    ) -> Floats:
        """All rows, in steps that end at ``cuts`` and at the end."""
        return self.load(backend, kv_type).rows(cuts)


class Loaded:
    def __init__(self, lab: Lab, backend: Backend, kv_type: KVType | None) -> None:
        self.lab, self.backend = lab, backend
        self.segments = backend.load((lab.embed, lab.layer, lab.head), lab.weights)  # type: ignore[arg-type]
        self.blocks = -(-len(lab.x) // KV_BLOCK)
        self.groups = state_groups(lab.state)
        groups = len(self.groups)
        self.state: StateCache = backend.state_cache(
            lab.state, (2 * self.blocks,) * groups, kv_type
        )
        # Blocks out of order, another one in each group: nothing may rely on neighbours.
        order = np.random.default_rng(1)
        self.tables = tuple(
            order.permutation(2 * self.blocks).astype(np.int32)[: self.blocks]
            for _ in range(groups)
        )

    def _tables(self, number: int) -> tuple[NDArray[np.int32], ...]:
        """Those of step ``number``: of recurrent state two slots in turn."""
        slots = np.array([(number - 1) % 2 if number else NO_BLOCK, number % 2], np.int32)
        return tuple(
            slots if group.recurrent else table
            for group, table in zip(self.groups, self.tables, strict=True)
        )

    def step(self, step: Step) -> Floats:
        return all_logits(self.backend, self.segments, step, self.state)

    def rows(self, cuts: Sequence[int] = ()) -> Floats:
        out, past = [], 0
        for number, end in enumerate([*cuts, len(self.lab.x)]):
            rows = np.arange(past, end, dtype=np.int32)
            span = Span(0, end - past, past, self._tables(number))
            out.append(self.step(Step(rows, rows, (span,), np.arange(end - past, dtype=np.int32))))
            past = end
        return np.concatenate(out)


def all_logits(
    backend: Backend, segments: Sequence[LoadedSegment], step: Step, state: StateCache
) -> Floats:
    """A step's logits: the body once, and the head as often as it takes slices of their rows."""
    *body, head = segments
    values: Activations = {}
    for segment in body:
        values = backend.run(segment, step, state, values)
    rows, out = step.logits_indices, []
    for start in range(0, len(rows), MAX_LOGIT_ROWS):
        some = replace(step, logits_indices=rows[start : start + MAX_LOGIT_ROWS])
        out.append(np.array(backend.run(head, some, state, values)["logits"]))
    return np.concatenate(out)
