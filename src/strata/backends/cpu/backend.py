"""The native backend: a Segment is one call that releases the GIL and runs on a thread team."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
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
from strata.backends.cpu.counters import of_experts, of_kept_rows, of_loading, of_streaming
from strata.backends.cpu.entries import all_or_nothing
from strata.backends.cpu.experts import CachedExperts, ExpertLayer, padded_rows
from strata.backends.cpu.host import choose_isa, kernels_digest
from strata.backends.cpu.nodes import Parameters
from strata.backends.cpu.profile import (
    CpuModelProfile,
    attention_shapes,
    choice_bytes,
    choices,
    chosen_bytes,
    int8_planes,
    partials_bytes,
    profile,
    rope_table_bytes,
    running_bytes,
)
from strata.backends.cpu.reading import WeightLoad, WeightReader, native_id, packed_nbytes
from strata.backends.cpu.segment import (
    HiddenState,
    JoinedSegments,
    NativeSegment,
    Track,
)
from strata.backends.cpu.state import NativeState, tier_bytes
from strata.backends.kv_types import KV_TYPES, KVType, bounds_nbytes
from strata.backends.settings import ActivationsName, BackendSettings
from strata.backends.weights import WeightError, WeightReadError, WeightSource
from strata.cores import usable_cores
from strata.errors import UsageError
from strata.program import LayerState, Model, Reads, Segment, Weight, state_groups
from strata.program.ops import float_operands
from strata.quant import by_name
from strata.quant.grids import grid

_Floats = Mapping[str, NDArray[np.float32]]

_KV_UNDER_WAY = 64 << 20
"""Bytes of KV that may be on their way while layers attend: all of its ring buffer."""

_CODEBOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


class CpuBackend:
    """Runs Segments with the native kernels.

    ``threads`` defaults to the cores this process may use, ``isa`` to STRATA_ISA or the best here.
    The bits of the results depend on ``isa`` and ``settings.activations`` alone: not on
    ``threads``, the cut into steps, or what is streamed. Large memory is entered in ``books``
    before it is allocated.

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
        self._known: list[tuple[Segment, _Floats]] = []
        self._sources: list[WeightSource] = []
        self._kept: list[_native.PackedWeight | None] = []
        self._running: list[tuple[str, int]] = []
        self._expert_layers: dict[object, _native.ExpertMatrix] = {}
        self._weights: dict[object, int] = {}
        self._before = NO_STATS
        self._arena: _native.Arena | None = None
        self._readers: _native.Readers | None = None
        self._stream: _native.Stream | None = None
        self._experts: _native.ExpertCache | None = None
        self._tables: list[_native.FileRows] = []
        self._row_cache: _native.RowCache | None = None
        # A weight used by two Segments (a tied embedding) is held once.
        self._packed: weakref.WeakValueDictionary[object, _native.PackedWeight] = (
            weakref.WeakValueDictionary()
        )
        self._ropes: dict[tuple[bytes, float, int], _native.RopeTable] = {}
        self._step: tuple[Step, NativeState, _native.Step] | None = None
        self._rows = 0
        # Layers in the order in which they attend, where not all KV is in memory.
        self._calls: list[int] | None = [] if self.settings.kv_slots else None
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
    def profile(
        model: Model, weights: WeightSource, activations: ActivationsName = "int8"
    ) -> CpuModelProfile:
        """What a Model takes here."""
        return profile(model, weights, activations)

    @property
    def device(self) -> str:
        """The instruction set."""
        return self.isa

    @all_or_nothing
    def load(
        self, segments: Sequence[Segment], weights: WeightSource, *, beside: bool = False
    ) -> list[LoadedSegment]:
        """Load weights, or find where they will be streamed from, and lower Segments."""
        if beside:
            return [self._beside(segment) for segment in segments]
        natives = self._load([(segment, {}) for segment in segments], weights)
        self._known += [(native.segment, native.floats) for native in natives]
        self._sources += [weights] * len(natives)
        return list(natives)

    def _load(
        self, some: Sequence[tuple[Segment, _Floats]], weights: WeightSource
    ) -> list[NativeSegment]:
        """Lower Segments of which some vectors are known. Their matrices are read together: each
        call has threads to wake and memory to read into."""
        loads: list[WeightLoad] = []
        parameters = [self._parameters(segment, weights, known, loads) for segment, known in some]
        self._reader.load(loads)
        natives = [
            NativeSegment(
                segment,
                held,
                self.settings.max_tokens,
                self.settings.max_logit_rows,
                self.isa,
                ahead=self.settings.expert_ahead > 0,
                planes=int8_planes(self.settings.activations),
            )
            for (segment, _), held in zip(some, parameters, strict=True)
        ]
        self._segments += natives
        self._arena = self._stats = None
        return natives

    def _parameters(
        self,
        segment: Segment,
        weights: WeightSource,
        known: _Floats,
        loads: list[WeightLoad],
    ) -> Parameters:
        """A Segment's weights; what is to be read of them is entered in ``loads``."""
        vectors = float_operands(segment.program)
        units = {w.name: unit for unit in segment.units for w in unit.weights}
        matrices: dict[str, Any] = {}
        floats: dict[str, NDArray[np.float32]] = {}
        for weight in segment.weights:
            if weight.name in known:
                floats[weight.name] = known[weight.name]
                continue
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
        return Parameters(matrices, floats, self._rope, self.settings.tile_bytes, self._calls)

    def _beside(self, segment: Segment) -> NativeSegment:
        """A Segment of vectors that others have as well."""
        known = {name: floats for _, some in self._known for name, floats in some.items()}
        if not all(weight.name in known for weight in segment.weights):
            raise UsageError(
                f"'{segment.name}' has weights of its own, for which there is no room beside the "
                "others"
            )
        floats = {weight.name: known[weight.name] for weight in segment.weights}
        return NativeSegment(
            segment,
            Parameters({}, floats, self._rope, self.settings.tile_bytes),
            self.settings.max_tokens,
            self.settings.max_logit_rows,
            self.isa,
            planes=int8_planes(self.settings.activations),
        )

    def _streamed(self, weight: Weight, weights: WeightSource, reads: Reads) -> Any:
        """Where a weight is read from while the model runs."""
        if reads == "routed":
            # The same one again, or what a cache has of it would be another's.
            experts = self._expert_layers.get(_key(weight, weights))
            experts = experts or self._reader.expert_matrix(weight, weights)
            if experts is not None:
                self._expert_layers[_key(weight, weights)] = experts
                return experts
        elif (place := self._reader.place(weight, weights)) is not None:
            if reads != "rows":
                return place
            self._tables.append(self._reader.rows(place))
            return self._tables[-1]
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
        nbytes = packed_nbytes(weight, weights, routed=routed)
        self._books.take("weights", nbytes)
        self._weights[_key(weight, weights)] = nbytes
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

    def _rope(self, inv_freq: NDArray[np.float32], mscale: float, limit: int) -> _native.RopeTable:
        key = (inv_freq.tobytes(), mscale, limit)
        if key not in self._ropes:
            self._ropes[key] = _native.RopeTable(inv_freq.tolist(), mscale, limit)
        return self._ropes[key]

    @property
    def numerics(self) -> str:
        """The instruction set and the kernels themselves, and what they multiply."""
        return f"{self.name} {self.isa} {kernels_digest()} {self.settings.activations}"

    @all_or_nothing
    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> NativeState:
        """Room for what layers keep of sequences: so many blocks of each of their groups."""
        kept = kv_type or self.kv_types[0]
        groups = state_groups(state)
        ring, _ = tier_bytes(kept, state, groups, 0) if self.settings.kv_slots else (0, 0)
        in_memory = list(blocks)
        if ring:
            in_memory[0] = self.settings.kv_slots
        for group, count in zip(groups, in_memory, strict=True):
            self._books.take("kv", count * kept.block_nbytes(state, group))
        if ring:
            apart = sum(bounds_nbytes(state[number]) for number in groups[0].layers)
            ring += max(0, blocks[0] - self.settings.kv_slots) * apart
        self._books.take("kv", ring)
        try:
            return NativeState(
                state, blocks, kept, self.settings.kv_slots, self.settings.kv_directory
            )
        except _native.ReadError as error:
            raise UsageError(str(error)) from None

    def give_back(self, state: StateCache) -> None:
        """See Backend."""
        assert isinstance(state, NativeState)
        self._step = None
        self._books.give("kv", state.nbytes)
        state.close()

    @all_or_nothing
    def prepare(self) -> None:
        """All Segments are loaded: allocate what running takes and begin to read ahead."""
        if self._arena is not None or not self._segments:
            return
        self._running.clear()
        arena = max(s.arena_bytes for s in self._segments)
        scratch = max(s.scratch_floats for s in self._segments)
        shapes = attention_shapes(op for s in self._segments for op in s.segment.program.ops)
        partials = partials_bytes(
            shapes, self.settings.positions, self.settings.parallel, self.threads
        )
        if self.settings.kv_slots:
            # Only windows are split for threads then.
            ops = (op for s in self._segments for op in s.segment.program.ops)
            windows = any(op.attrs.get("window") for op in ops)
            running = running_bytes(shapes, self.settings.max_tokens)
            partials = max(partials if windows else 0, running)
        for frequencies, _, _ in self._ropes:
            rows, count = self.settings.max_tokens, len(frequencies) // 4
            self._take("rope tables", rope_table_bytes(count, rows))
        if any(op.attrs.get("read") for s in self._segments for op in s.segment.program.ops):
            rows = self.settings.max_tokens
            partials += choice_bytes(self.settings.positions, self.threads, rows)
        if chosen := [n for s in self._segments for n, _, _ in choices(s.segment.program)]:
            rows = self.settings.max_tokens
            partials += chosen_bytes(self.settings.positions, self.threads, rows, max(chosen))
        self._take("activations", arena + 4 * scratch * self.threads + partials)
        self._take("logits", 4 * self.settings.max_logit_rows * self._segments[-1].external)
        allocated = _native.Arena(arena, self.threads, scratch)
        if self.settings.kv_slots or any(s.streams for s in self._segments):
            self._prepare_streaming()
        if self._tables and self.settings.row_cache_bytes:
            self._prepare_rows(self.settings.row_cache_bytes)
        self._arena = allocated

    def _prepare_rows(self, nbytes: int) -> None:
        """Room for rows of all tables that stay on the disk."""
        self._take("rows", nbytes)
        self._row_cache = _native.RowCache(nbytes, max(table.row_bytes for table in self._tables))
        for number, table in enumerate(self._tables):
            table.attach(self._row_cache, number)

    def _take(self, owner: str, nbytes: int) -> None:
        """Enter what running takes, which is given back when that changes."""
        self._books.take(owner, nbytes)
        self._running.append((owner, nbytes))

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
            self._take("ring", ring_bytes)
        if layers:
            slot, reads = _native.expert_memory(layers, reading.request_bytes)
            if not 0 <= self.settings.expert_ahead + self.settings.expert_sure < slots:
                raise UsageError(
                    "experts that do not stay need a slot at least, beside those for what is read "
                    "before it is chosen"
                )
            if self._experts is None:
                self._books.take("experts", slots * slot)
            scratch = max(scratch, reads)
        self._take("staging", _native.Readers.scratch_bytes(reading.threads, scratch))
        # What KV passes through is on its way beside the ring buffer.
        under_way = ring_bytes + (_KV_UNDER_WAY if self.settings.kv_slots else 0)
        readers = _native.Readers(reading.threads, scratch, under_way)
        if tracks:
            self._stream = _native.Stream(tracks, ring_bytes, readers)
            for number, segment in enumerate(s for s in self._segments if s.track):
                segment.attach(self._stream, number)
        if layers:
            if self._experts is None:
                settings = self.settings
                self._experts = _native.ExpertCache(
                    layers,
                    slots,
                    reading.request_bytes,
                    readers,
                    settings.expert_ahead,
                    settings.expert_decay,
                    settings.expert_sure,
                )
            else:
                # What it holds stays.
                self._experts.read_by(readers)
                self._resize_experts(slots)
            first = 0
            for segment in self._segments:
                segment.attach_experts(self._experts, first)
                first += len(segment.experts)
        self._readers = readers

    def rearrange(self, settings: BackendSettings) -> list[LoadedSegment]:
        """See Backend. What stays, vectors and experts that are in slots are not read again."""
        self._release_running()
        self._let_go(settings)
        self._load(self._known, self._sources[0])
        self._kept.clear()
        self.prepare()
        return list(self._segments)

    def _release_running(self) -> None:
        """Give back what running takes, but for experts."""
        self._before += self._streaming_stats() + self._row_stats()
        self._arena = self._stream = self._readers = self._step = self._stats = None
        self._row_cache = None
        while self._running:
            self._books.give(*self._running.pop())

    def _let_go(self, settings: BackendSettings) -> None:
        """Free what does not stay by other settings, and what is to be read in another way."""
        weights = self._sources[0]
        units = [unit for segment, _ in self._known for unit in segment.units]
        stay = [w for u in units if u.name not in settings.streamed for w in u.weights]
        routed = [u for u in units if u.reads == "routed" and u.name in settings.streamed]
        layers = {_key(w, weights) for u in routed for w in u.weights}
        if settings.reading != self._reader.reading or layers != set(self._expert_layers):
            # Of other layers, or in other files: another cache.
            self._expert_layers.clear()
            self._drop_experts()
        elif self._experts is not None and self._experts.slots > settings.expert_slots:
            self._resize_experts(settings.expert_slots)
        self._kept = [self._packed.get(_key(w, weights)) for w in stay]
        self._segments.clear()
        self._tables.clear()
        self._ropes.clear()
        for key in [key for key in self._weights if key not in self._packed]:
            self._books.give("weights", self._weights.pop(key))
        if settings.reading != self._reader.reading:
            self._before += self._loading_stats()
            self._reader = WeightReader(settings.reading)
        self.settings = settings
        self._calls = [] if settings.kv_slots else None

    def _resize_experts(self, slots: int) -> None:
        """So many slots, in the books as well."""
        assert self._experts is not None
        before = int(self._experts.nbytes)
        more = before // int(self._experts.slots) * slots - before
        self._books.take("experts", max(0, more))
        try:
            ahead = min(self.settings.expert_ahead, slots - 1)
            sure = min(self.settings.expert_sure, slots - ahead - 1)
            self._experts.resize(slots, ahead, self.settings.expert_decay, sure)
        except BaseException:
            self._books.give("experts", max(0, more))
            raise
        self._books.give("experts", max(0, -more))

    def _drop_experts(self) -> None:
        if self._experts is not None:
            self._before += self._expert_stats()
            self._books.give("experts", int(self._experts.nbytes))
            self._experts = None

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
        calls = self._calls if first is self._segments[0] else None
        # No context manager here: a token of a small model has no time for thirty of them.
        self._rows = len(step.tokens)
        try:
            native = self._native_step(step, state)
            if calls is not None and state.slots and self._readers is not None:
                # Blocks that it writes come to memory.
                state.native.begin(native, calls, self._readers)
            return loaded.run(self._team, self.isa, self._arena, native, state.native, step)
        except _native.ReadError as error:
            raise WeightReadError(str(error)) from None

    def join(self, loaded: Sequence[LoadedSegment]) -> JoinedSegments | None:
        """Resident Segments in one native call; None where some of them are streamed."""
        if self._calls is not None:
            return None
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
        self._tables.clear()
        self._row_cache = None
        self._ropes.clear()
        self._expert_layers.clear()
        self._known.clear()
        self._sources.clear()
        self._arena = self._stream = self._experts = self._readers = self._step = None

    def export(
        self, activations: Activations, names: Sequence[str], first: int = 0
    ) -> dict[str, NDArray[np.float32]]:
        """See Backend. The hidden state lies in the arena, in rows of the step that was run."""
        out = {}
        for name in names:
            value = activations[name]
            if isinstance(value, HiddenState):
                assert self._arena is not None
                value = self._arena.floats(self._rows, value.width)[first:].copy()
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
        stats = self._before + self._loading_stats() + self._row_stats()
        if self._readers is not None:
            return stats + self._streaming_stats() + self._expert_stats()
        if self._arena is not None and not self.settings.streamed:
            self._stats = stats
        return stats

    def _loading_stats(self) -> BackendStats:
        return of_loading(self._reader)

    def _streaming_stats(self) -> BackendStats:
        return NO_STATS if self._readers is None else of_streaming(self._readers, self._stream)

    def _row_stats(self) -> BackendStats:
        return NO_STATS if self._row_cache is None else of_kept_rows(self._row_cache)

    def _expert_stats(self) -> BackendStats:
        return NO_STATS if self._experts is None else of_experts(self._experts)

    def expert_slots(self) -> CachedExperts | None:
        """Slots of experts that are not resident; None where all are."""
        if self._experts is None:
            return None
        streamed = self.settings.streamed
        units = (unit for segment, _ in self._known for unit in segment.units)
        sizes = [u.experts for u in units if u.reads == "routed" and u.name in streamed]
        return CachedExperts(self._experts, sizes)

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
