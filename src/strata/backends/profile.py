"""What a backend says of a model before anything is loaded: the bytes and seconds it will take.

A planner asks for a ModelProfile and decides by it; how a backend comes to its figures is its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from strata.backends.kv_types import KVType, bounds_nbytes, choose_kv_type
from strata.backends.settings import ActivationsName
from strata.program import LayerState, Reads, Segment, StateGroup, state_groups
from strata.program.cost import distinct_experts
from strata.records import dataclass


@dataclass(frozen=True)
class SweepSize:
    """What a sweep advances: ``sequences`` of them by ``rows`` tokens each, after ``past`` others,
    and ``logit_rows`` rows of logits from which tokens are chosen."""

    sequences: int
    rows: int
    past: int
    logit_rows: int

    @property
    def tokens(self) -> int:
        """Tokens of the sweep."""
        return self.sequences * self.rows


class OpRates(Protocol):
    """What a machine reaches, as seconds of single things; see ``strata.machine.rates.Rates``."""

    @property
    def call_s(self) -> float:
        """Seconds of a native call that has next to nothing to do."""

    @property
    def node_s(self) -> float:
        """Seconds of opening and closing one node's work among the threads."""

    def product_s(self, format: str, nbytes: int, operations: float) -> float:
        """Seconds of a product that reads ``nbytes`` of weights and does so many operations."""

    def pack_s(self, format: str, nbytes: int) -> float:
        """Seconds of bringing bytes of a file into the kernels' form, with all threads."""

    def attention_s(self, kv_bytes: float, operations: float) -> float:
        """Seconds of attention that reads so many bytes of KV and does so many operations."""

    def elementwise_s(self, nbytes: int) -> float:
        """Seconds of an Op without a matrix that reads and writes so many bytes."""


@dataclass(frozen=True)
class MatrixProfile:
    """A weight of two axes: ``file_bytes`` in the file, ``packed_bytes`` in memory. ``source`` says
    what it is stored as: a tied head is the embedding table. ``lookup`` marks tables of which only
    the rows of a step's tokens are read."""

    name: str
    source: tuple[str, tuple[int, int] | None]
    format: str
    rows: int
    width: int
    file_bytes: int
    packed_bytes: int
    lookup: bool


@dataclass(frozen=True)
class UnitProfile:
    """A WeightUnit's sizes: ``packed_bytes`` in memory when it stays, ``streamed_bytes`` read from
    the file in every sweep when it does not. Of tables only the rows of a step's tokens are read,
    which is not counted; and of ``experts``, of which a row chooses ``top_k``, those that were
    chosen and are not in a slot: ``expert_bytes`` each. ``lookups`` are the rows of tables that a
    token asks for."""

    name: str
    reads: Reads
    matrices: tuple[MatrixProfile, ...]
    experts: int = 0
    top_k: int = 0
    lookups: int = 0

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes read from the file in a sweep when it is not resident."""
        return sum(m.file_bytes for m in self.matrices) if self.reads == "all" else 0

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of its matrices in the file."""
        return sum(m.file_bytes for m in self.matrices)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in the file; 0 for other units."""
        return self.file_bytes // self.experts if self.experts else 0

    @cached_property
    def packed_bytes(self) -> int:
        """Bytes of its matrices in memory."""
        return sum(m.packed_bytes for m in self.matrices)

    def pack_seconds(self, rates: OpRates) -> float:
        """Seconds of bringing it from the file's form into that of the kernels."""
        if self.reads == "rows":
            return 0.0
        return sum(rates.pack_s(m.format, m.file_bytes) for m in self.matrices)

    def needed(self, rows: int) -> float:
        """Of its experts, how many a step of so many rows is expected to need, if all are chosen
        alike."""
        return distinct_experts(self.experts, self.top_k, rows) if self.experts else 0.0


@dataclass(frozen=True)
class SegmentProfile(ABC):
    """A Segment's weights and what running it takes. ``vector_bytes`` are norms and biases, which
    always stay in memory."""

    segment: Segment
    units: tuple[UnitProfile, ...]
    vector_bytes: int

    @cached_property
    def matrices(self) -> tuple[MatrixProfile, ...]:
        """Those of all units."""
        return tuple(m for unit in self.units for m in unit.matrices)

    @property
    def name(self) -> str:
        """The Segment's name."""
        return self.segment.name

    @cached_property
    def selects(self) -> bool:
        """Whether it gives logits: of selected rows, and not at all for a step that wants none."""
        return any(op.kind == "select" for op in self.segment.program.ops)

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes read from the file in a sweep when nothing of it is resident."""
        return sum(unit.streamed_bytes for unit in self.units)

    @property
    def packed_bytes(self) -> int:
        """Bytes of its matrices in memory."""
        return sum(unit.packed_bytes for unit in self.units)

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """Equal for Segments that differ in names and in the layer's number alone."""
        matrices = {m.name: (m.format, m.rows, m.width, m.packed_bytes) for m in self.matrices}
        values = self.segment.program.values

        def shape(name: str) -> object:
            return matrices.get(name) or (values[name].shape if name in values else None)

        return tuple(
            (
                op.kind,
                values[op.output].shape,
                *map(shape, op.inputs),
                *(repr(item) for item in sorted(op.attrs.items()) if item[0] != "layer"),
            )
            for op in self.segment.program.ops
        )

    @property
    @abstractmethod
    def least_tile(self) -> int:
        """Bytes of the smallest tile that everything that streams of it can be cut into."""

    @abstractmethod
    def reads(self, tile_bytes: int) -> int:
        """Reads that a sweep takes when it streams: one for each matrix's part of a tile."""

    @abstractmethod
    def arena_bytes(self, tokens: int, logit_rows: int) -> int:
        """Bytes of activations that a step of so many tokens and rows of logits takes."""

    @abstractmethod
    def seconds(self, size: SweepSize, rates: OpRates, kv_element_bytes: float) -> float:
        """Seconds of its arithmetic in a sweep, wherever the weights come from.
        ``kv_element_bytes`` are bytes that a number of the KV takes."""

    @abstractmethod
    def experts_seconds(self, tokens: int, rates: OpRates) -> tuple[float, float]:
        """What of that is products of experts: with what goes in, and with what comes out."""


@dataclass(frozen=True)
class ModelProfile(ABC):
    """The Segments of a model, and what they share. ``activations`` is how exactly products take
    their input."""

    segments: tuple[SegmentProfile, ...]
    state: tuple[LayerState, ...]
    kv_types: tuple[KVType, ...]
    activations: ActivationsName

    @cached_property
    def vector_bytes(self) -> int:
        """Bytes of all norms and biases."""
        return sum(s.vector_bytes for s in self.segments)

    @cached_property
    def units(self) -> tuple[UnitProfile, ...]:
        """Those of all Segments, in running order."""
        return tuple(unit for s in self.segments for unit in s.units)

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes of all matrices that a sweep multiplies with, as the file has them."""
        return sum(s.streamed_bytes for s in self.segments)

    def reads(self, tile_bytes: int) -> int:
        """Reads of a sweep in which everything streams in tiles of this size."""
        # A planner asks again and again for few sizes.
        if tile_bytes not in self._reads:
            self._reads[tile_bytes] = sum(s.reads(tile_bytes) for s in self.segments)
        return self._reads[tile_bytes]

    @cached_property
    def _reads(self) -> dict[int, int]:
        return {}

    @cached_property
    def groups(self) -> tuple[StateGroup, ...]:
        """Layers whose state is kept for the same time."""
        return state_groups(self.state)

    def block_nbytes(self, kv_type: str) -> tuple[int, ...]:
        """Bytes of a block of each group of state."""
        if kv_type not in self._block_nbytes:
            kept = choose_kv_type(kv_type, self.kv_types)
            self._block_nbytes[kv_type] = tuple(
                kept.block_nbytes(self.state, group) for group in self.groups
            )
        return self._block_nbytes[kv_type]

    @cached_property
    def _block_nbytes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def kv_bytes(self, blocks: Sequence[int], kv_type: str) -> int:
        """Bytes of so many blocks of each group of state."""
        sizes = self.block_nbytes(kv_type)
        return sum(count * size for count, size in zip(blocks, sizes, strict=True))

    @cached_property
    def experts(self) -> int:
        """Experts of all layers."""
        return sum(unit.experts for unit in self.units)

    @cached_property
    def bounds_nbytes(self) -> int:
        """Bytes of the bounds of the keys of a block of the first group, which are in memory where
        the block is not."""
        layers = self.groups[0].layers if self.groups else ()
        return sum(bounds_nbytes(self.state[number]) for number in layers)

    def kv_ring_bytes(self, kv_type: str) -> int:
        """Bytes of memory beside the blocks in it where not all KV is in memory; 0 where it has to
        be."""
        return 0

    def kv_file_bytes(self, kv_type: str, blocks: int) -> int:
        """Bytes of the file for so many blocks of the first group."""
        return 0

    @property
    @abstractmethod
    def slot_bytes(self) -> int:
        """Bytes of a slot with room for any expert; 0 where there are none."""

    @abstractmethod
    def arena_bytes(self, tokens: int, logit_rows: int) -> int:
        """Bytes of the activations of a step; Segments take turns with them."""

    @abstractmethod
    def scratch_bytes(self, *, streams: bool) -> int:
        """Bytes of scratch of each thread that computes; more where any matrix may stream."""

    @abstractmethod
    def attention_bytes(
        self, context: int, parallel: int, threads: int, rows: int, *, in_turns: bool = False
    ) -> int:
        """Bytes that attention over ``context`` positions of ``parallel`` sequences takes beside
        activations and KV in steps of ``rows``: rotary positions and partial results; of every row
        ``in_turns``, where not all KV is in memory."""

    @abstractmethod
    def loading_bytes(self, threads: int, request_bytes: int) -> int:
        """Bytes that so many threads read into while they load what stays."""

    @abstractmethod
    def streaming_bytes(self, threads: int, tile_bytes: int) -> int:
        """Bytes beside the ring buffer while everything streams, read by so many threads."""
