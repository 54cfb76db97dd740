"""The native backend: a Segment is one call that releases the GIL and runs on a thread team."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import (
    Activations,
    BackendStats,
    Books,
    LoadedSegment,
    NoBooks,
    StateCache,
    Step,
)
from strata.backends.cpu.experts import ExpertLayer, padded_rows
from strata.backends.cpu.nodes import Parameters
from strata.backends.cpu.profile import (
    CpuModelProfile,
    attention_shapes,
    partials_bytes,
    profile,
)
from strata.backends.cpu.reading import WeightLoad, WeightReader, native_id, packed_nbytes
from strata.backends.cpu.segment import (
    HiddenState,
    JoinedSegments,
    NativeSegment,
    Track,
)
from strata.backends.cpu.state import NativeState
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightError, WeightReadError, WeightSource
from strata.errors import UsageError
from strata.program import LayerState, Model, Reads, Segment, Weight, state_groups
from strata.program.ops import float_operands
from strata.quant import by_name
from strata.quant.grids import grid

_CODEBOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def available_isas() -> tuple[str, ...]:
    """Instruction sets that have kernels and run here, the best first."""
    return tuple(_native.available_isas())


def choose_isa(name: str | None = None) -> str:
    """The instruction set asked for (argument, else STRATA_ISA), or the best one here."""
    wanted = name or os.environ.get("STRATA_ISA", "").strip().lower()
    if not wanted:
        return available_isas()[0]
    if wanted not in available_isas():
        raise UsageError(
            f"STRATA_ISA: no kernels for '{wanted}' here; available: {', '.join(available_isas())}"
        )
    return wanted


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_cores()))


def _cgroup_cores() -> int:
    unlimited = 1 << 16
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()[:2]
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f:
                quota = f.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as f:
                period = f.read().strip()
        except OSError:
            return unlimited
    try:
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else unlimited
    except (ValueError, ZeroDivisionError):
        return unlimited


@lru_cache(maxsize=1)
def _kernels_digest() -> str:
    """Of the extension module's bytes: other kernels may add in another order."""
    path = _native.__file__
    assert path is not None
    with open(path, "rb") as module:
        return hashlib.blake2b(module.read(), digest_size=16).hexdigest()


class _Entries(Books):
    """What was entered in books since."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._taken: list[tuple[str, int]] = []

    def take(self, owner: str, nbytes: int) -> None:
        self._books.take(owner, nbytes)
        self._taken.append((owner, nbytes))

    def give(self, owner: str, nbytes: int) -> None:
        self._books.give(owner, nbytes)

    def undo(self) -> None:
        for owner, nbytes in self._taken:
            self._books.give(owner, nbytes)


P = ParamSpec("P")
R = TypeVar("R")


def _all_or_nothing(
    method: Callable[Concatenate[CpuBackend, P], R],
) -> Callable[Concatenate[CpuBackend, P], R]:
    """What a method entered in the books is taken out again if it then could not be had."""

    @wraps(method)
    def wrapped(self: CpuBackend, /, *args: P.args, **kwargs: P.kwargs) -> R:
        books = self._books
        self._books = entries = _Entries(books)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            entries.undo()
            raise
        finally:
            self._books = books

    return wrapped


class CpuBackend:
    """Runs Segments with the native kernels.

    ``threads`` defaults to the cores this process may use, ``isa`` to STRATA_ISA or the best here.
    The bits of the results depend on ``isa`` alone: not on ``threads``, the cut into steps, or what
    is streamed. Large memory is entered in ``books`` before it is allocated.

    A sweep begins with the Segment that was loaded first and goes through all in their order; the
    last one, the head, runs once for every ``max_logit_rows`` rows of logits, or not at all.
    """

    name = "cpu"
    plans = True
    kv_types = KV_TYPES

    def __init__(
        self,
        threads: int | None = None,
        isa: str | None = None,
        settings: BackendSettings | None = None,
        books: Books | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.isa = choose_isa(isa)
        self.threads = threads or usable_cores()
        self.settings = settings or BackendSettings()
        self._books = books or NoBooks()
        self._team = _native.Team(self.threads)
        self._reader = WeightReader(self.settings.reading)
        self._segments: list[NativeSegment] = []
        self._arena: _native.Arena | None = None
        self._readers: _native.Readers | None = None
        self._stream: _native.Stream | None = None
        self._experts: _native.ExpertCache | None = None
        # A weight used by two Segments (a tied embedding) is held once.
        self._packed: weakref.WeakValueDictionary[object, _native.PackedWeight] = (
            weakref.WeakValueDictionary()
        )
        self._ropes: dict[tuple[bytes, float], _native.RopeTable] = {}
        self._step: tuple[Step, NativeState, _native.Step] | None = None
        self._rows = 0
        self._stats: BackendStats | None = None
        for name in _CODEBOOKS:
            _native.set_grid(native_id(by_name(name)), grid(name).view(np.uint8).reshape(-1))

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> CpuBackend:
        """``device`` is an instruction set."""
        return cls(threads, device, settings, books)

    @staticmethod
    def profile(model: Model, weights: WeightSource) -> CpuModelProfile:
        """What a Model takes here."""
        return profile(model, weights)

    @property
    def device(self) -> str:
        """The instruction set."""
        return self.isa

    @_all_or_nothing
    def load(self, segment: Segment, weights: WeightSource) -> NativeSegment:
        """Load a Segment's weights, or find where they will be streamed from, and lower it."""
        vectors = float_operands(segment.program)
        units = {w.name: unit for unit in segment.units for w in unit.weights}
        matrices: dict[str, Any] = {}
        floats: dict[str, NDArray[np.float32]] = {}
        loads: list[WeightLoad] = []
        for weight in segment.weights:
            if len(weight.shape) == 1 or weight.name in vectors:
                floats[weight.name] = np.ascontiguousarray(weights.floats(weight)).reshape(-1)
                self._books.take("weights", floats[weight.name].nbytes)
                continue
            unit = units[weight.name]
            routed = unit.reads == "routed"
            streams = unit.name in self.settings.streamed
            if streams and self._packed.get(_key(weight, weights)) is None:
                matrices[weight.name] = self._streamed(weight, weights, unit.reads)
            else:
                matrices[weight.name] = self._pack(weight, weights, loads, routed=routed)
        self._reader.load(loads)
        native = NativeSegment(
            segment,
            Parameters(matrices, floats, self._rope, self.settings.tile_bytes),
            self.settings.max_tokens,
            self.settings.max_logit_rows,
            self.isa,
        )
        self._segments.append(native)
        self._arena = self._stats = None
        return native

    def _streamed(self, weight: Weight, weights: WeightSource, reads: Reads) -> Any:
        """Where a weight is read from while the model runs."""
        if reads == "routed":
            experts = self._reader.expert_matrix(weight, weights)
            if experts is not None:
                return experts
        elif (place := self._reader.place(weight, weights)) is not None:
            return self._reader.rows(place) if reads == "rows" else place
        nbytes = packed_nbytes(weight, weights, routed=reads == "routed")
        raise WeightError(
            f"tensor '{weight.source}' cannot be streamed: give enough memory to hold "
            f"it, {nbytes:,} bytes"
        )

    def _pack(
        self,
        weight: Weight,
        weights: WeightSource,
        loads: list[WeightLoad],
        *,
        routed: bool,
    ) -> _native.PackedWeight:
        """Memory for a weight, filled at once or entered in ``loads``."""
        found = self._packed.get(_key(weight, weights))
        if found is not None:
            return found
        places = self._places(weight, weights, routed=routed)
        self._books.take("weights", packed_nbytes(weight, weights, routed=routed))
        packed = self._reader.allocate(weight, weights, routed=routed)
        if places is None:
            raw = weights.raw(weight)
            raw = _padded(raw, weight) if routed else np.ascontiguousarray(raw).reshape(-1)
            packed.pack(raw, self._team)
        else:
            each = int(packed.panels) // len(places)
            loads += [(place, packed, i * each) for i, place in enumerate(places)]
        self._packed[_key(weight, weights)] = packed
        return packed

    def _places(
        self, weight: Weight, weights: WeightSource, *, routed: bool
    ) -> list[_native.WeightPlace] | None:
        if routed:
            return self._reader.expert_places(weight, weights)
        place = self._reader.place(weight, weights)
        return None if place is None else [place]

    def _rope(self, inv_freq: NDArray[np.float32], mscale: float) -> _native.RopeTable:
        key = (inv_freq.tobytes(), mscale)
        if key not in self._ropes:
            # cos and sin of every position.
            self._books.take("rope tables", 8 * inv_freq.size * self.settings.positions)
            self._ropes[key] = _native.RopeTable(inv_freq.tolist(), mscale)
        return self._ropes[key]

    @property
    def numerics(self) -> str:
        """The instruction set and the kernels themselves."""
        return f"{self.name} {self.isa} {_kernels_digest()}"

    @_all_or_nothing
    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> NativeState:
        """Room for what layers keep of sequences: so many blocks of each of their groups."""
        kept = kv_type or self.kv_types[0]
        for group, count in zip(state_groups(state), blocks, strict=True):
            self._books.take("kv", count * kept.block_nbytes(state, group))
        return NativeState(state, blocks, self.kv_types.index(kept))

    @_all_or_nothing
    def prepare(self) -> None:
        """All Segments are loaded: allocate what running takes and begin to read ahead."""
        if self._arena is not None or not self._segments:
            return
        arena = max(s.arena_bytes for s in self._segments)
        scratch = max(s.scratch_floats for s in self._segments)
        shapes = attention_shapes(op for s in self._segments for op in s.segment.program.ops)
        partials = partials_bytes(
            shapes, self.settings.positions, self.settings.parallel, self.threads
        )
        self._books.take("activations", arena + 4 * scratch * self.threads + partials)
        self._books.take("logits", 4 * self.settings.max_logit_rows * self._segments[-1].external)
        allocated = _native.Arena(arena, self.threads, scratch)
        if any(s.streams for s in self._segments):
            self._prepare_streaming()
        self._arena = allocated

    def _prepare_streaming(self) -> None:
        reading, ring_bytes, slots = (
            self.settings.reading,
            self.settings.ring_bytes,
            self.settings.expert_slots,
        )
        tracks: list[Track] = [s.track for s in self._segments if s.track]
        layers: list[ExpertLayer] = [layer for s in self._segments for layer in s.experts]
        scratch = 0
        if tracks:
            tile, scratch = _native.stream_memory(tracks)
            if tile > ring_bytes:
                raise UsageError(
                    f"a ring buffer of {ring_bytes} bytes does not hold a tile of {tile}"
                )
            self._books.take("ring", ring_bytes)
        if layers:
            slot, reads = _native.expert_memory(layers, reading.request_bytes)
            if slots < 1:
                raise UsageError("experts that do not stay need a slot at least")
            self._books.take("experts", slots * slot)
            scratch = max(scratch, reads)
        self._books.take("staging", _native.Readers.scratch_bytes(reading.threads, scratch))
        readers = _native.Readers(reading.threads, scratch, ring_bytes)
        if layers:
            self._experts = _native.ExpertCache(layers, slots, reading.request_bytes, readers)
            first = 0
            for segment in self._segments:
                segment.attach_experts(self._experts, first)
                first += len(segment.experts)
        if tracks:
            self._stream = _native.Stream(tracks, ring_bytes, readers)
            for number, segment in enumerate(s for s in self._segments if s.track):
                segment.attach(self._stream, number)
        self._readers = readers

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> Mapping[str, Any]:
        """Run one Segment over a step of at most ``max_tokens`` tokens.

        Activations between Segments stay in the arena: they are those of the last Segment run,
        and the step must be the same one. ``logits`` come back as a new float32 array. Raises
        WeightReadError if streamed weights cannot be read; the next sweep tries anew.
        """
        assert isinstance(loaded, (NativeSegment, JoinedSegments))
        assert isinstance(state, NativeState)
        self.prepare()
        assert self._arena is not None
        first = loaded.segments[0] if isinstance(loaded, JoinedSegments) else loaded
        if self._stream is not None and first is self._segments[0]:
            self._begin_sweep(self._stream, len(step.logits_indices))
        # No context manager here: a token of a small model has no time for thirty of them.
        self._rows = len(step.tokens)
        try:
            native = self._native_step(step, state)
            return loaded.run(self._team, self.isa, self._arena, native, state.native, step)
        except _native.ReadError as error:
            raise WeightReadError(str(error)) from None

    def join(self, loaded: Sequence[LoadedSegment]) -> JoinedSegments | None:
        """Resident Segments in one native call; None where some of them are streamed."""
        segments = [s for s in loaded if isinstance(s, NativeSegment) and not s.streams]
        if len(segments) < max(2, len(loaded)):
            return None
        return JoinedSegments(segments, self.settings.max_tokens)

    def _begin_sweep(self, stream: _native.Stream, logit_rows: int) -> None:
        order = list(range(sum(bool(s.track) for s in self._segments)))
        if self._segments[-1].track:
            head = order.pop()
            order += [head] * -(-logit_rows // self.settings.max_logit_rows)
        if order:
            stream.begin_sweep(order)

    def _native_step(self, step: Step, state: NativeState) -> _native.Step:
        if self._step is None or self._step[0] is not step or self._step[1] is not state:
            spans = [(s.row, s.rows, s.past, s.tables, s.parent) for s in step.spans]
            native = _native.Step(
                state.native, step.tokens, step.positions, step.logits_indices, spans
            )
            self._step = (step, state, native)
        return self._step[2]

    def close(self) -> None:
        """Let go of all Segments, the arena, the ring buffer and experts; nothing can be run then.

        Memory is free once nobody else holds the Segments either.
        """
        self._segments.clear()
        self._ropes.clear()
        self._arena = self._stream = self._experts = self._readers = self._step = None

    def export(
        self, activations: Activations, names: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """See Backend. The hidden state lies in the arena, in rows of the step that was run."""
        out = {}
        for name in names:
            value = activations[name]
            if isinstance(value, HiddenState):
                assert self._arena is not None
                value = self._arena.floats(self._rows, value.width).copy()
            out[name] = value
        return out

    def import_(self, arrays: Mapping[str, NDArray[np.float32]], step: Step) -> Activations:
        """See Backend. UsageError if the arrays are not the one hidden state of the step."""
        self.prepare()
        assert self._arena is not None
        rows = len(step.tokens)
        if len(arrays) != 1 or any(x.ndim != 2 or len(x) != rows for x in arrays.values()):
            shapes = {name: x.shape for name, x in arrays.items()}
            raise UsageError(f"one hidden state of {rows} rows goes in, not {shapes}")
        self._rows = rows
        for name, x in arrays.items():
            self._arena.floats(*x.shape)[:] = x
            return {name: HiddenState(x.shape[1])}
        return {}

    def stats(self) -> BackendStats:
        """See Backend. Where nothing is streamed it stays the same once all is loaded."""
        if self._stats is not None:
            return self._stats
        readers, loading, rows = self._readers, self._reader.counters, self._reader.row_counters
        stats = BackendStats(
            rows=rows.wanted,
            row_reads=rows.reads,
            rows_from_disk=rows.from_disk,
            loaded=loading.wanted,
            loading_s=loading.reading_s,
        )
        if readers is not None:
            stream, experts, read = self._stream, self._experts, readers.counters
            stats = replace(
                stats,
                used=0 if stream is None else stream.used_bytes,
                wanted=read.wanted,
                from_disk=read.from_disk,
                reads=read.reads,
                reading_s=read.reading_s,
                fetching_s=readers.fetching_s,
                waited_s=readers.waited_s,
                full_s=readers.idle_s,
            )
            if experts is None:
                return stats
            return replace(
                stats,
                used=stats.used + experts.read_bytes,
                expert_hits=experts.hits,
                expert_misses=experts.misses,
                expert_bytes=experts.needed_bytes,
                expert_read=experts.read_bytes,
            )
        if self._arena is not None and not self.settings.streamed:
            self._stats = stats
        return stats

    def cached_bytes(self) -> int:
        """Page cache that the model's files take, whoever brought it there."""
        return self._reader.cached_bytes()

    @property
    def nbytes(self) -> int:
        """Bytes of activations and scratch."""
        return 0 if self._arena is None else int(self._arena.nbytes)


def _padded(raw: NDArray[np.uint8], weight: Weight) -> NDArray[np.uint8]:
    """A weight's bytes, those of each expert filled up to whole panels."""
    experts, n, _ = weight.shape
    missing = padded_rows(experts, n) // experts - n
    padded = np.pad(raw.reshape(experts, n, -1), ((0, 0), (0, missing), (0, 0)))
    return np.ascontiguousarray(padded).reshape(-1)


def _key(weight: Weight, weights: WeightSource) -> object:
    return (id(weights), weight.source, weight.rows, weight.transform, weight.each, weight.experts)
