"""Executes nothing: counts what each Op of a step would compute and move. For plans and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    NO_STATS,
    Activations,
    BackendStats,
    Books,
    LoadedSegment,
    StateCache,
    Step,
)
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.profile import ModelProfile
from strata.backends.settings import ActivationsName, BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.program import (
    SIGNATURES,
    Cost,
    LayerState,
    Model,
    Op,
    Program,
    Segment,
    StateGroup,
    StepSize,
    op_cost,
    state_bytes,
    state_groups,
)
from strata.records import dataclass


@dataclass
class NullSegment:
    """A Segment and the bytes that each of its weights takes; nothing is read."""

    segment: Segment
    stored: Mapping[str, int]
    node_times: None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the weights would hold."""
        return sum(self.stored.values())


class NullState:
    """The sizes of a StateCache; nothing is allocated, copied or read."""

    def __init__(self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType) -> None:
        self.groups: tuple[StateGroup, ...] = state_groups(state)
        self.blocks = tuple(blocks)
        self._sizes = [kv_type.block_nbytes(state, group) for group in self.groups]

    @property
    def nbytes(self) -> int:
        """Bytes that the blocks would hold."""
        return sum(n * size for n, size in zip(self.blocks, self._sizes, strict=True))

    def block_nbytes(self, group: int) -> int:
        """Bytes that a block would hold."""
        return self._sizes[group]

    def copy(self, group: int, source: int, target: int) -> None:
        """Nothing."""

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        """Nothing."""

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        """Nothing."""


@dataclass
class NullBackend:
    """Counts. ``costs`` adds up over steps, by (Segment, output of the Op).

    Logits are zeros; activations between Segments have shapes and take no memory.
    """

    kv_bytes_per_element: float = 2.0
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)
    name: str = "null"
    plans: bool = False
    kv_types: tuple[KVType, ...] = KV_TYPES
    device: str = "none"
    threads: int | None = None

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> NullBackend:
        """It takes no memory and has nothing to choose."""
        del threads, device, settings, books
        return cls()

    @staticmethod
    def profile(
        model: Model, weights: WeightSource, activations: ActivationsName = "int8"
    ) -> ModelProfile:
        """UsageError: it keeps to no Plan."""
        del model, weights, activations
        raise UsageError("the null backend keeps to no memory budget; the cpu backend does")

    def load(
        self, segments: Sequence[Segment], weights: WeightSource, *, beside: bool = False
    ) -> list[LoadedSegment]:
        """Look up the bytes of weights in their block formats."""
        return [
            NullSegment(s, {w.name: weights.type(w).tensor_nbytes(w.shape) for w in s.weights})
            for s in segments
        ]

    @property
    def numerics(self) -> str:
        """All logits are zeros."""
        return self.name

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> NullState:
        """The sizes of so many blocks of each group."""
        return NullState(state, blocks, kv_type or self.kv_types[0])

    def give_back(self, state: StateCache) -> None:
        """Nothing was taken."""

    def rearrange(self, settings: BackendSettings) -> list[LoadedSegment]:
        """UsageError: it keeps to no Plan."""
        del settings
        raise UsageError("the null backend keeps to no memory budget; the cpu backend does")

    def join(self, loaded: Sequence[LoadedSegment]) -> None:
        """Segments run one by one."""

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, NDArray[np.float32]]:
        """Count one Segment over a step; returns outputs of the right shapes, all zeros."""
        del state, inputs
        assert isinstance(loaded, NullSegment)
        program = loaded.segment.program
        for op in program.ops:
            key = (loaded.segment.name, op.output)
            cost = self._cost(op, program, step, loaded.stored)
            self.costs[key] = self.costs.get(key, Cost()) + cost
        outputs = {}
        for outer, inner in zip(loaded.segment.outputs, program.outputs, strict=True):
            value = program.values[inner]
            rows = len(step.logits_indices) if value.shape[0] == "R" else len(step.tokens)
            outputs[outer] = np.broadcast_to(np.float32(0), (rows, value.width))
        return outputs

    def prepare(self) -> None:
        """Nothing is taken."""

    def export(
        self, activations: Activations, names: Sequence[str], first: int = 0
    ) -> dict[str, NDArray[np.float32]]:
        """The zeros as arrays that take memory."""
        return {name: np.array(activations[name][first:]) for name in names}

    def import_(self, arrays: Mapping[str, NDArray[np.float32]], step: Step) -> Activations:
        """Activations of the same shapes; what they hold is nobody's concern."""
        del step
        return dict(arrays)

    def expert_slots(self) -> None:
        """All experts are there."""

    def stats(self) -> BackendStats:
        """Nothing is read."""
        return NO_STATS

    def cached_bytes(self) -> int:
        """No file is opened."""
        return 0

    def close(self) -> None:
        """Nothing is held."""

    @property
    def total(self) -> Cost:
        """Everything counted so far."""
        return sum(self.costs.values(), Cost())

    def by_segment(self) -> dict[str, Cost]:
        """Counted so far, by Segment."""
        out: dict[str, Cost] = {}
        for (segment, _), cost in self.costs.items():
            out[segment] = out.get(segment, Cost()) + cost
        return out

    def _cost(self, op: Op, program: Program, step: Step, stored: Mapping[str, int]) -> Cost:
        """Cost of an Op, with each sequence's share of the state: rows attend over more keys the
        later they stand."""
        size = StepSize(len(step.tokens), len(step.logits_indices), 0, self.kv_bytes_per_element)
        whole = op_cost(op, program, size, stored)
        signature = SIGNATURES[op.kind]
        if signature.state is None:
            return whole
        values = [program.values[name] for name in op.inputs]
        flops = kept = 0
        for span in step.spans:
            own = replace(size, tokens=span.rows, context=span.past + span.rows)
            kept += state_bytes(op, program, own)
            flops += sum(
                signature.flops(values, op.attrs, 1, span.past + i + 1) for i in range(span.rows)
            )
        return replace(whole, flops=flops, kv_bytes=kept)
