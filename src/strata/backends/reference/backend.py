"""The oracle: every Op as one obvious numpy function in float32. Slow, permanent, never clever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from strata.backends.base import (
    NO_STATS,
    Activations,
    BackendStats,
    Books,
    LoadedSegment,
    NoBooks,
    StateCache,
    Step,
)
from strata.backends.kv_types import F32, KV_TYPES, KVType
from strata.backends.profile import ModelProfile
from strata.backends.reference.attention import ATTENTION
from strata.backends.reference.dense import DENSE
from strata.backends.reference.elementwise import ELEMENTWISE
from strata.backends.reference.experts import EXPERTS
from strata.backends.reference.heads import HEADS
from strata.backends.reference.recurrent import RECURRENT
from strata.backends.reference.run import Run
from strata.backends.reference.scans import SCANS
from strata.backends.reference.state import Floats, ReferenceState
from strata.backends.reference.streams import STREAMS
from strata.backends.settings import ActivationsName, BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.program import (
    LayerState,
    Model,
    Segment,
)
from strata.records import dataclass

OPS: Mapping[str, Run] = {
    **DENSE,
    **ELEMENTWISE,
    **HEADS,
    **ATTENTION,
    **RECURRENT,
    **SCANS,
    **STREAMS,
    **EXPERTS,
}


@dataclass
class ReferenceSegment:
    """A Segment with its weights as float32 arrays."""

    segment: Segment
    weights: Mapping[str, Floats]
    node_times: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return sum(w.nbytes for w in self.weights.values())


class ReferenceBackend:
    """Runs Segments with numpy. Activations are float32 arrays [rows, width].

    ``kv_type`` is how keys and values are rounded unless ``state_cache`` is told otherwise.
    """

    name = "reference"
    plans = False
    numerics = "numpy"
    device = "numpy"
    threads = None
    kv_types = (F32, *KV_TYPES)

    def __init__(self, kv_type: KVType = F32, books: Books | None = None) -> None:
        self._kv_type = kv_type
        self._books = books or NoBooks()

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> ReferenceBackend:
        """numpy chooses its threads itself, and any step fits."""
        del threads, device, settings
        return cls(books=books)

    @staticmethod
    def profile(
        model: Model, weights: WeightSource, activations: ActivationsName = "int8"
    ) -> ModelProfile:
        """UsageError: it keeps to no Plan."""
        del model, weights, activations
        raise UsageError("the reference backend keeps to no memory budget; the cpu backend does")

    def load(
        self, segments: Sequence[Segment], weights: WeightSource, *, beside: bool = False
    ) -> list[LoadedSegment]:
        """Dequantise weights."""
        self._books.take("weights", sum(4 * prod(w.shape) for s in segments for w in s.weights))
        return [
            ReferenceSegment(s, {w.name: weights.floats(w) for w in s.weights}) for s in segments
        ]

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> ReferenceState:
        """Room for so many blocks of each group of layers."""
        made = ReferenceState(state, blocks, kv_type or self._kv_type)
        self._books.take("kv", made.nbytes)
        return made

    def give_back(self, state: StateCache) -> None:
        """See Backend."""
        self._books.give("kv", state.nbytes)

    def rearrange(self, settings: BackendSettings) -> list[LoadedSegment]:
        """UsageError: it keeps to no Plan."""
        del settings
        raise UsageError("the reference backend keeps to no memory budget; the cpu backend does")

    def prepare(self) -> None:
        """numpy takes memory as it goes."""

    def join(self, loaded: Sequence[LoadedSegment]) -> None:
        """Segments run one by one."""

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, Floats]:
        """Run one Segment over a step; returns its outputs under their outer names."""
        assert isinstance(loaded, ReferenceSegment)
        assert isinstance(state, ReferenceState)
        program = loaded.segment.program
        values: dict[str, Floats] = {**loaded.weights, **{n: inputs[n] for n in program.inputs}}
        for op in program.ops:
            operands = [values[name] for name in op.inputs]
            values[op.output] = OPS[op.kind](op.attrs, operands, step, state)
        outputs = zip(loaded.segment.outputs, program.outputs, strict=True)
        return {outer: values[inner] for outer, inner in outputs}

    def export(
        self, activations: Activations, names: Sequence[str], first: int = 0
    ) -> dict[str, Floats]:
        """See Backend."""
        return {name: activations[name][first:] for name in names}

    def import_(self, arrays: Mapping[str, Floats], step: Step) -> Activations:
        """See Backend."""
        del step
        return {name: np.array(x, np.float32) for name, x in arrays.items()}

    def expert_slots(self) -> None:
        """All experts are there."""

    def stats(self) -> BackendStats:
        """Weights come through ``WeightSource``, which counts nothing."""
        return NO_STATS

    def cached_bytes(self) -> int:
        """No file is opened here."""
        return 0

    def close(self) -> None:
        """Segments are freed with those who hold them."""
