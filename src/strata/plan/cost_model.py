"""Seconds of a sweep: what each Op computes and moves, against what the machine reaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from itertools import compress
from math import ceil, comb

from strata.backends.kv_types import KV_BLOCK, bounds_nbytes, choose_kv_type
from strata.backends.profile import SweepSize, UnitProfile
from strata.machine import constants
from strata.machine.rates import Rates
from strata.plan.expert_policies import SURE, hit_rate
from strata.plan.outline import Outline
from strata.plan.plan import Bound
from strata.plan.routes import curve_for
from strata.program import PagedKV
from strata.program.ops import SIGNATURES
from strata.records import dataclass


@dataclass(frozen=True)
class SweepTime:
    """Seconds of a sweep: of reading, of work, and of both overlapped."""

    read_s: float
    compute_s: float
    total_s: float
    bound: Bound


@dataclass(frozen=True)
class Streaming:
    """What a choice of resident units leaves to stream, and how: bytes of each Segment and seconds
    of packing them, how many rows of tables a token asks the disk for, its bandwidth and the ring
    buffer. Of ``experts``, those of each Segment that are read when they are chosen, the share
    ``hit_rate`` is found in a slot, and of those that are sure to be needed ``sure_bytes`` are read
    before their layer's turn. ``kv_slots`` blocks of KV are in memory, all where it is 0."""

    segment_bytes: tuple[int, ...]
    segment_pack_s: tuple[float, ...]
    lookups: int
    bytes_s: float
    ring_bytes: int
    experts: tuple[tuple[UnitProfile, ...], ...] = ()
    hit_rate: float = 0.0
    sure_bytes: int = 0
    kv_slots: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in every sweep, whatever is chosen."""
        return sum(self.segment_bytes)

    def expert_bytes(self, rows: int) -> float:
        """Bytes of experts that a step of so many rows reads."""
        needed = sum(unit.needed(rows) * unit.expert_bytes for s in self.experts for unit in s)
        return needed * (1 - self.hit_rate)


def is_sure(units: Sequence[UnitProfile], rows: int) -> bool:
    """Whether a step of so many rows needs about all experts of a Segment that has these."""
    return min(unit.needed(rows) / unit.experts for unit in units) >= SURE


def _experts_of(segments: Sequence[Sequence[UnitProfile]]) -> tuple[tuple[UnitProfile, ...], ...]:
    return tuple(found for units in segments if (found := tuple(u for u in units if u.experts)))


def _cold_blocks(size: SweepSize, streaming: Streaming, read: int) -> int:
    """Blocks of KV that a sweep sees and memory does not hold; rows see ``read``, or all for 0."""
    if not streaming.kv_slots:
        return 0
    each = -(-(size.past + size.rows) // KV_BLOCK)
    seen = size.sequences * each
    cold = max(0, seen - streaming.kv_slots)
    if not read or not cold:
        return cold
    # As many of those that a row sees are in memory as of all, and rows see different ones.
    return min(cold, -(-cold * size.sequences * min(each, read * size.rows) // seen))


def _kv_parts(model: Outline, kv_type: str) -> list[int]:
    """Bytes that the attention of each Segment reads of a block that is not in memory."""
    kept = choose_kv_type(kv_type, model.profile.kv_types)
    first = model.groups[0].layers if model.groups else ()

    def part(layer: int) -> int:
        if layer not in first:
            return 0
        return kept.layer_nbytes(model.state, layer) - bounds_nbytes(model.state[layer])

    return [
        sum(part(op.attrs["layer"]) for op in s.segment.program.ops if _attends(op.kind))
        for s in model.segments
    ]


def _attends(kind: str) -> bool:
    return SIGNATURES[kind].state == "kv"


_FEW = 32
"""Experts of which each number that may be missing is looked at; of more it is the mean."""


@dataclass(frozen=True)
class _Needed:
    """Of a Segment's experts those that a step needs: bytes in the file, seconds of packing them,
    how many they are, seconds of what goes into them and of what comes out. ``like`` is the number
    of the first Segment of its kind, and ``sure`` whether they are read before their turn, while
    the Segment before it is worked on."""

    file_bytes: float
    pack_s: float
    count: float
    first_s: float
    second_s: float
    like: int
    sure: bool

    def waited_s(self, missing: float, each_s: float, begin_s: float, before_s: float) -> float:
        """Seconds that are waited where such a share has to be read, ``each_s`` a byte and
        ``begin_s`` until the first one comes, and so much of it before its turn."""
        # When the last one comes its gate and up are left to do, and the downs from the last
        # one that was missing on: they go in rising order, and come so.
        last = min(1.0, 1 / self.count)
        meanwhile = self.first_s * (1 - last) + before_s
        meanwhile += self.second_s * (1 - max(last, 1 / (1 + missing * self.count)))
        reading = missing * self.file_bytes * each_s + begin_s
        # Packing takes the same cores.
        return max(reading - meanwhile, missing * self.pack_s)


class CostModel:
    """Times of one model on one machine. Results are remembered, since plans ask many times."""

    def __init__(self, model: Outline, rates: Rates, kv_type: str) -> None:
        self.model = model
        self.rates = rates
        # A block of all layers is what attention reads for each 64 positions of a sequence.
        paged = [layer for layer in model.state if isinstance(layer, PagedKV)]
        elements = sum(layer.elements for layer in paged) * KV_BLOCK
        blocks = [0 if group.recurrent else 1 for group in model.groups]
        self._kv_element_bytes = model.kv_bytes(blocks, kv_type) / elements if elements else 0.0
        self.pack_s = {unit.name: unit.pack_seconds(rates) for unit in model.units}
        self._segments_s = cache(self._time_segments)
        self._bound = cache(self._find_bound)
        self._needed: dict[object, Counter[_Needed]] = {}
        self._begin_s = rates.machine.read_latency_s + constants.READ_GAP
        self._kv_parts = _kv_parts(model, kv_type)
        self._kv_read = max((layer.read for layer in paged), default=0) // KV_BLOCK
        self._without_logits = [not s.selects for s in model.segments]
        kinds = {s.kind: s for s in model.segments}
        self._kinds = [kinds[s.kind] for s in model.segments]
        self._one_each = list(kinds.values())

    def streaming(
        self,
        resident: Collection[str],
        bytes_s: float,
        ring_bytes: int,
        expert_slots: int = 0,
        kv_slots: int = 0,
        rows: int = 1,
        sure: int = 0,
    ) -> Streaming:
        """What streams when the units of these names stay. If all experts are chosen alike, as many
        are found as there are slots but for those that are just used or read; where routes were
        recorded, as many as there were, in steps of ``rows`` tokens. At most ``sure`` slots are for
        what the next layer is sure to need."""
        rest = [[u for u in s.units if u.name not in resident] for s in self.model.segments]
        return Streaming(
            segment_bytes=tuple(sum(u.streamed_bytes for u in units) for units in rest),
            segment_pack_s=tuple(
                sum(self.pack_s[u.name] for u in units if not u.experts) for units in rest
            ),
            lookups=sum(u.lookups for units in rest for u in units),
            bytes_s=bytes_s,
            ring_bytes=ring_bytes,
            experts=(experts := _experts_of(rest)),
            hit_rate=self.hit_rate(experts, expert_slots, rows, sure),
            sure_bytes=sure * self.model.profile.slot_bytes,
            kv_slots=kv_slots,
        )

    def kv_read_bytes(self, size: SweepSize, streaming: Streaming) -> int:
        """Bytes of KV that a sweep reads."""
        return _cold_blocks(size, streaming, self._kv_read) * sum(self._kv_parts)

    def hit_rate(
        self,
        segments: Sequence[Sequence[UnitProfile]],
        slots: int,
        rows: int,
        sure: int = 0,
        *,
        alike: bool = False,
    ) -> float:
        """Of the experts of Segments that steps of ``rows`` tokens need, the share that is found:
        by recorded routes where there are some, unless all are to be chosen ``alike``."""
        every = [u for units in segments for u in units]
        experts, layers = sum(u.experts for u in every), len(segments)
        needed = sum(u.needed(rows) for u in every) / max(1, layers)
        if not all(is_sure(units, rows) for units in segments):
            sure = 0
        found = hit_rate(experts, layers, slots, needed, sure)
        curve = curve_for(self.model.hits, rows, slots)
        if alike or curve is None or slots >= experts:
            return found
        # Routes were replayed without reading before a layer's turn.
        passing = (hit_rate(experts, layers, slots, needed) - found) * experts
        return curve.rate(max(0, slots - round(passing)))

    def sweep(self, size: SweepSize, streaming: Streaming) -> SweepTime:
        """A sweep through Segments that are resident, and those of which some units stream.

        Reading goes ahead of the work as far as the ring buffer has room: all that resident
        Segments take between two that stream is only of use for that. Experts are waited for while
        those that are there are worked on.
        """
        rate = streaming.bytes_s * constants.DISK_SHARE
        reading, packing, _ = self._experts_s(size, streaming)
        working = 0.0
        for seconds, nbytes, pack in self._parts(size, streaming):
            reading += nbytes / rate
            working += seconds
            packing += pack
        bound: Bound = "disk"
        if reading <= working + packing:
            bound = "compute" if packing > working else self._bound(size)
        compute_s = working + packing + self._outside_s(size)
        return SweepTime(reading, compute_s, self.sweep_s(size, streaming), bound)

    def sweep_s(self, size: SweepSize, streaming: Streaming) -> float:
        """``total_s`` of a sweep. A plan asks thousands of times: nothing is called in the loop."""
        outside = self._outside_s(size)
        rate = streaming.bytes_s * constants.DISK_SHARE
        room = streaming.ring_bytes * constants.RING_SHARE
        parts = self._parts(size, streaming)
        attending = self._attending_s(size, streaming, rate)
        ahead = total = 0.0
        # In the first round the ring buffer is found as the sweep before left it.
        for _ in range(2 if any(nbytes for _, nbytes, _ in parts) else 1):
            total = 0.0
            for (seconds, nbytes, pack), late in zip(parts, attending, strict=True):
                taken, waiting = seconds + pack, (nbytes - ahead) / rate
                if waiting > taken:
                    taken = waiting
                if taken < late + pack:
                    taken = late + pack
                ahead = ahead + rate * taken - nbytes
                if ahead > room:
                    ahead = room
                total += taken
            total += outside
            ahead = min(room, ahead + rate * outside)
        total += self._experts_s(size, streaming)[2]
        if cold := _cold_blocks(size, streaming, self._kv_read):
            # Nothing else is done while blocks that give way are written.
            written = min(cold, size.tokens / KV_BLOCK)
            total += written * sum(self._kv_parts) / rate
        if streaming.lookups:
            # One after the other in each thread. Which ones are still in memory nobody knows.
            rounds = ceil(size.tokens * streaming.lookups / self.rates.threads)
            total += rounds * self.rates.machine.read_latency_s
        return total

    def _attending_s(self, size: SweepSize, streaming: Streaming, rate: float) -> list[float]:
        """Of each Segment that runs, what it takes at least because of KV on disk, little of which
        is read before its layers attend: its products, and then reading the rest."""
        runs = [True] * len(self._kv_parts) if size.logit_rows else self._without_logits
        cold = _cold_blocks(size, streaming, self._kv_read)
        if not cold:
            return [0.0] * sum(runs)
        products = self._segments_s(replace(size, past=0))
        late = [
            before + (cold * part - constants.KV_AHEAD) / rate if part else 0.0
            for before, part in zip(products, self._kv_parts, strict=True)
        ]
        return list(compress(late, runs))

    def _experts_s(self, size: SweepSize, streaming: Streaming) -> tuple[float, float, float]:
        """Seconds of reading and of packing experts that are not there, and those waited for."""
        if not streaming.experts or streaming.hit_rate == 1:
            return 0.0, 0.0, 0.0
        key = size.tokens, tuple(u.name for s in streaming.experts for u in s)
        if key not in self._needed:
            self._needed[key] = Counter(
                self._needed_of(s, size.tokens, first=n == 0)
                for n, s in enumerate(streaming.experts)
            )
        missing = 1 - streaming.hit_rate
        each_s = 1 / (streaming.bytes_s * constants.DISK_SHARE)
        reading = packing = waited = 0.0
        for needed, segments in self._needed[key].items():
            reading += segments * missing * needed.file_bytes * each_s
            packing += segments * missing * needed.pack_s
            before_s = 0.0
            if needed.sure:
                before_s = self._segments_s(size)[needed.like] - needed.first_s - needed.second_s
                before_s = min(max(0.0, before_s), streaming.sure_bytes * each_s)
            waited += segments * self._waited_s(needed, missing, each_s, before_s)
        return reading, packing, waited

    def _waited_s(self, needed: _Needed, missing: float, each_s: float, before_s: float) -> float:
        """Seconds that a step waits in a Segment for its experts, of which a share is ``missing``:
        what one in which few are found waits is not made up for by others in which all are."""
        if needed.count > _FEW:
            return needed.waited_s(missing, each_s, self._begin_s, before_s)
        count = max(1, round(needed.count))
        return sum(
            comb(count, m)
            * missing**m
            * (1 - missing) ** (count - m)
            * needed.waited_s(m / count, each_s, self._begin_s, before_s)
            for m in range(1, count + 1)
        )

    def _needed_of(self, units: Sequence[UnitProfile], tokens: int, *, first: bool) -> _Needed:
        """What a step needs of a Segment's experts; before the ``first`` one none is read."""
        shares = [(u, u.needed(tokens) / u.experts) for u in units]
        name = units[0].name
        segment = next(s for s in self.model.segments if any(u.name == name for u in s.units))
        return _Needed(
            sum(n * u.file_bytes for u, n in shares),
            sum(n * self.pack_s[u.name] for u, n in shares),
            sum(n * u.experts for u, n in shares),
            *segment.experts_seconds(tokens, self.rates),
            like=[s.kind for s in self.model.segments].index(segment.kind),
            sure=not first and is_sure(units, tokens),
        )

    def _parts(self, size: SweepSize, streaming: Streaming) -> list[tuple[float, int, float]]:
        """Of each Segment that runs: seconds of arithmetic, bytes that stream, seconds of packing
        them."""
        seconds = self._segments_s(size)
        nbytes: Sequence[int] = streaming.segment_bytes
        if cold := _cold_blocks(size, streaming, self._kv_read):
            kv = self._kv_parts
            nbytes = [n + cold * part for n, part in zip(nbytes, kv, strict=True)]
        parts = list(zip(seconds, nbytes, streaming.segment_pack_s, strict=True))
        if size.logit_rows:
            return parts
        return list(compress(parts, self._without_logits))

    def _outside_s(self, size: SweepSize) -> float:
        return constants.STEP + self._choosing_s(size.logit_rows)

    def _time_segments(self, size: SweepSize) -> tuple[float, ...]:
        """Seconds of each Segment's arithmetic, wherever the weights come from."""
        each = self._kv_element_bytes
        of_kind = {s.name: s.seconds(size, self.rates, each) for s in self._one_each}
        return tuple(of_kind[s.name] for s in self._kinds)

    def _find_bound(self, size: SweepSize) -> Bound:
        """Whether weights are read faster than multiplied with, at so many rows."""
        reading = computing = 0.0
        for s in self.model.segments:
            rows = size.logit_rows if s.selects else size.tokens
            for m in s.matrices:
                if not m.lookup:
                    kernel = self.rates.kernel(m.format)
                    reading += m.packed_bytes / kernel.decode_bytes_s
                    computing += 2.0 * rows * m.rows * m.width / kernel.prefill_ops_s
        return "memory" if reading >= computing else "compute"

    def _choosing_s(self, logit_rows: int) -> float:
        per_token = constants.SAMPLE + self.model.vocabulary * constants.SAMPLE_LOGIT
        return logit_rows * per_token
