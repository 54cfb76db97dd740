"""A second backend: the native one as if its memory were another machine's.

Activations and state are in memory of its own kind, and go in and out by copies that are asked for
by name. Whoever takes what it gives for an array, or knows the native backend when he sees it,
breaks here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    Activations,
    BackendStats,
    Books,
    ExpertSlots,
    LoadedSegment,
    StateCache,
    Step,
)
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KVType
from strata.backends.profile import ModelProfile
from strata.backends.settings import ActivationsName, BackendSettings
from strata.backends.weights import WeightSource
from strata.program import LayerState, Model, Segment

Floats = NDArray[np.float32]


class DeviceArray:
    """float32 [rows, width] that only its backend can look at."""

    def __init__(self, host: Floats) -> None:
        self._shape, self._data = host.shape, host.astype(np.float32).tobytes()

    def fetch(self) -> Floats:
        """A copy in host memory."""
        return np.frombuffer(self._data, np.float32).reshape(self._shape).copy()


@dataclass(frozen=True)
class DeviceSegment:
    """A Segment that the native backend has loaded."""

    inner: LoadedSegment
    node_times: None = None

    @property
    def segment(self) -> Segment:
        return self.inner.segment

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


class DeviceState:
    """State that is no array of the host's: it is copied, read and written, and nothing else.
    Outside of the device its bytes are others."""

    def __init__(self, inner: StateCache) -> None:
        self.inner = inner
        self.groups, self.blocks, self.nbytes = inner.groups, inner.blocks, inner.nbytes

    def block_nbytes(self, group: int) -> int:
        return self.inner.block_nbytes(group)

    def copy(self, group: int, source: int, target: int) -> None:
        self.inner.copy(group, source, target)

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        self.inner.read(group, block, out)
        np.invert(out, out=out)

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        self.inner.write(group, block, np.invert(data))


class CopyingBackend:
    """Runs Segments one by one, with a copy of the activations in and one out."""

    name = "copying"
    plans = True
    kv_types = CpuBackend.kv_types

    def __init__(self, inner: CpuBackend) -> None:
        self.inner = inner

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> CopyingBackend:
        return cls(CpuBackend.create(threads, device, settings, books))

    @staticmethod
    def profile(
        model: Model, weights: WeightSource, activations: ActivationsName = "int8"
    ) -> ModelProfile:
        return CpuBackend.profile(model, weights, activations)

    @property
    def numerics(self) -> str:
        """Blocks are of no use to the native backend, nor its to us."""
        return f"{self.name} {self.inner.numerics}"

    @property
    def device(self) -> str:
        return self.inner.device

    @property
    def threads(self) -> int | None:
        return self.inner.threads

    def load(
        self, segments: Sequence[Segment], weights: WeightSource, *, beside: bool = False
    ) -> list[LoadedSegment]:
        return [DeviceSegment(s) for s in self.inner.load(segments, weights, beside=beside)]

    def prepare(self) -> None:
        self.inner.prepare()

    def rearrange(self, settings: BackendSettings) -> list[LoadedSegment]:
        return [DeviceSegment(segment) for segment in self.inner.rearrange(settings)]

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> DeviceState:
        return DeviceState(self.inner.state_cache(state, blocks, kv_type))

    def join(self, loaded: Sequence[LoadedSegment]) -> None:
        """Each Segment has its activations copied."""

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, DeviceArray]:
        assert isinstance(loaded, DeviceSegment)
        assert isinstance(state, DeviceState)
        given: Activations = {}
        if loaded.segment.program.inputs:
            given = self.inner.import_({name: x.fetch() for name, x in inputs.items()}, step)
        made = self.inner.run(loaded.inner, step, state.inner, given)
        out = self.inner.export(made, loaded.segment.outputs)
        if "logits" not in out:
            # What the native backend keeps is worthless from here on.
            self.inner.import_({n: np.full_like(x, np.nan) for n, x in out.items()}, step)
        return {name: DeviceArray(x) for name, x in out.items()}

    def export(
        self, activations: Activations, names: Sequence[str], first: int = 0
    ) -> dict[str, Floats]:
        return {name: activations[name].fetch()[first:] for name in names}

    def import_(self, arrays: Mapping[str, Floats], step: Step) -> dict[str, DeviceArray]:
        del step
        return {name: DeviceArray(x) for name, x in arrays.items()}

    def expert_slots(self) -> ExpertSlots | None:
        return self.inner.expert_slots()

    def stats(self) -> BackendStats:
        return self.inner.stats()

    def cached_bytes(self) -> int:
        return self.inner.cached_bytes()

    def close(self) -> None:
        self.inner.close()
