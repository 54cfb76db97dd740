"""Seconds of a sweep: what each Op computes and moves, against what the machine reaches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from itertools import compress

from strata.backends.kv_types import KV_BLOCK
from strata.backends.profile import SweepSize, UnitProfile
from strata.machine import constants
from strata.machine.rates import Rates
from strata.plan.expert_policies import AHEAD
from strata.plan.outline import Outline
from strata.plan.plan import Bound
from strata.program import PagedKV


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
    of packing them, whether rows of tables are looked up on the disk, its bandwidth and the ring
    buffer. Of ``experts``, those of each Segment that are read when they are chosen, the share
    ``hit_rate`` is found in a slot."""

    segment_bytes: tuple[int, ...]
    segment_pack_s: tuple[float, ...]
    lookups: bool
    bytes_s: float
    ring_bytes: int
    experts: tuple[tuple[UnitProfile, ...], ...] = ()
    hit_rate: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes in every sweep, whatever is chosen."""
        return sum(self.segment_bytes)

    def expert_bytes(self, rows: int) -> float:
        """Bytes of experts that a step of so many rows reads."""
        needed = sum(unit.needed(rows) * unit.expert_bytes for s in self.experts for unit in s)
        return needed * (1 - self.hit_rate)


def hit_rate(experts: int, slots: int) -> float:
    """Of needed experts, the share that is found in a slot when all are chosen alike."""
    if not experts:
        return 0.0
    return 1.0 if slots >= experts else max(0, slots - AHEAD) / experts


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
        self._needed: dict[object, list[tuple[float, float]]] = {}
        self._without_logits = [not s.selects for s in model.segments]

    def streaming(
        self, resident: Collection[str], bytes_s: float, ring_bytes: int, expert_slots: int = 0
    ) -> Streaming:
        """What streams when the units of these names stay. If all experts are chosen alike, as many
        are found as there are slots but for those that are just used or read."""
        rest = [[u for u in s.units if u.name not in resident] for s in self.model.segments]
        return Streaming(
            segment_bytes=tuple(sum(u.streamed_bytes for u in units) for units in rest),
            segment_pack_s=tuple(
                sum(self.pack_s[u.name] for u in units if not u.experts) for units in rest
            ),
            lookups=any(u.reads == "rows" for units in rest for u in units),
            bytes_s=bytes_s,
            ring_bytes=ring_bytes,
            experts=tuple(
                found for units in rest if (found := tuple(u for u in units if u.experts))
            ),
            hit_rate=hit_rate(sum(u.experts for units in rest for u in units), expert_slots),
        )

    def sweep(self, size: SweepSize, streaming: Streaming) -> SweepTime:
        """A sweep through Segments that are resident, and those of which some units stream.

        Reading goes ahead of the work as far as the ring buffer has room: all that resident
        Segments take between two that stream is only of use for that. Experts are waited for: what
        is done meanwhile is not counted.
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
        ahead = total = 0.0
        # In the first round the ring buffer is found as the sweep before left it.
        for _ in range(2 if streaming.nbytes else 1):
            total = 0.0
            for seconds, nbytes, pack in parts:
                taken, waiting = seconds + pack, (nbytes - ahead) / rate
                if waiting > taken:
                    taken = waiting
                ahead = ahead + rate * taken - nbytes
                if ahead > room:
                    ahead = room
                total += taken
            total += outside
            ahead = min(room, ahead + rate * outside)
        total += self._experts_s(size, streaming)[2]
        if streaming.lookups:
            total += size.tokens * self.rates.machine.read_latency_s / self.rates.threads
        return total

    def _experts_s(self, size: SweepSize, streaming: Streaming) -> tuple[float, float, float]:
        """Seconds of reading and of packing experts that are not there, and those waited for."""
        if not streaming.experts or streaming.hit_rate == 1:
            return 0.0, 0.0, 0.0
        key = size.tokens, tuple(u.name for s in streaming.experts for u in s)
        if key not in self._needed:
            units = [[(u, u.needed(size.tokens) / u.experts) for u in s] for s in streaming.experts]
            self._needed[key] = [
                (sum(n * u.file_bytes for u, n in s), sum(n * self.pack_s[u.name] for u, n in s))
                for s in units
            ]
        missing = 1 - streaming.hit_rate
        each_s = missing / (streaming.bytes_s * constants.DISK_SHARE)
        reading = packing = waited = 0.0
        for nbytes, pack_s in self._needed[key]:
            reading += nbytes * each_s
            packing += pack_s * missing
            waited += max(nbytes * each_s, pack_s * missing)
        return reading, packing, waited

    def _parts(self, size: SweepSize, streaming: Streaming) -> list[tuple[float, int, float]]:
        """Of each Segment that runs: seconds of arithmetic, bytes that stream, seconds of packing
        them."""
        seconds = self._segments_s(size)
        parts = list(zip(seconds, streaming.segment_bytes, streaming.segment_pack_s, strict=True))
        if size.logit_rows:
            return parts
        return list(compress(parts, self._without_logits))

    def _outside_s(self, size: SweepSize) -> float:
        return constants.STEP + self._choosing_s(size.logit_rows)

    def _time_segments(self, size: SweepSize) -> tuple[float, ...]:
        """Seconds of each Segment's arithmetic, wherever the weights come from."""
        each = self._kv_element_bytes
        return tuple(s.seconds(size, self.rates, each) for s in self.model.segments)

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
