"""Seconds of a sweep: what each Op computes and moves, against what the machine reaches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from strata.backends.kv_types import KV_BLOCK
from strata.machine import constants
from strata.machine.rates import Rates
from strata.plan.outline import Outline, SegmentOutline, UnitOutline
from strata.plan.plan import Bound
from strata.program import Op, Program


@dataclass(frozen=True)
class Load:
    """What a sweep advances: ``sequences`` of them by ``rows`` tokens each, after ``past`` others,
    and ``out_rows`` rows of logits from which tokens are chosen."""

    sequences: int
    rows: int
    past: int
    out_rows: int

    @property
    def tokens(self) -> int:
        """Tokens of the sweep."""
        return self.sequences * self.rows


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
    buffer."""

    segment_bytes: tuple[int, ...]
    segment_pack_s: tuple[float, ...]
    lookups: bool
    bytes_s: float
    ring_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in every sweep."""
        return sum(self.segment_bytes)


class CostModel:
    """Times of one model on one machine. Results are remembered, since plans ask many times."""

    def __init__(self, model: Outline, rates: Rates, kv_type: str) -> None:
        self.model = model
        self.rates = rates
        # A block of all layers is what attention reads for each 64 positions of a sequence.
        elements = sum(2 * layer.kv_heads * layer.head_dim for layer in model.kv) * KV_BLOCK
        self._kv_element_bytes = model.kv_bytes(1, kv_type) / elements if elements else 0.0
        self.pack_s = {unit.name: self._pack_s(unit) for unit in model.units}
        self._segments_s = cache(self._time_segments)
        self._bound = cache(self._find_bound)

    def streaming(self, resident: Collection[str], bytes_s: float, ring_bytes: int) -> Streaming:
        """What streams when the units of these names stay."""
        rest = [[u for u in s.units if u.name not in resident] for s in self.model.segments]
        return Streaming(
            segment_bytes=tuple(sum(u.streamed_bytes for u in units) for units in rest),
            segment_pack_s=tuple(sum(self.pack_s[u.name] for u in units) for units in rest),
            lookups=any(u.reads == "rows" for units in rest for u in units),
            bytes_s=bytes_s,
            ring_bytes=ring_bytes,
        )

    def sweep(self, load: Load, streaming: Streaming) -> SweepTime:
        """A sweep through Segments that are resident, and those of which some units stream.

        Reading goes ahead of the work as far as the ring buffer has room: all that resident
        Segments take between two that stream is only of use for that.
        """
        outside = constants.STEP + self._choosing_s(load.out_rows)
        rate = streaming.bytes_s * constants.DISK_SHARE
        room = streaming.ring_bytes * constants.RING_SHARE
        ahead = total = reading = working = packing = 0.0
        # In the first round the ring buffer is found as the sweep before left it.
        for _ in range(2 if streaming.nbytes else 1):
            total = reading = working = packing = 0.0
            for s, seconds, nbytes, pack in zip(
                self.model.segments,
                self._segments_s(load),
                streaming.segment_bytes,
                streaming.segment_pack_s,
                strict=True,
            ):
                if s.selects and not load.out_rows:
                    continue
                taken = max(seconds + pack, (nbytes - ahead) / rate)
                ahead = min(room, ahead + rate * taken - nbytes)
                total += taken
                reading += nbytes / rate
                working += seconds
                packing += pack
            total += outside
            ahead = min(room, ahead + rate * outside)
        if streaming.lookups:
            total += load.tokens * self.rates.machine.read_latency_s / self.rates.threads
        bound: Bound = "disk"
        if reading <= working + packing:
            bound = "compute" if packing > working else self._bound(load)
        return SweepTime(reading, working + packing + outside, total, bound)

    def _time_segments(self, load: Load) -> tuple[float, ...]:
        """Seconds of each Segment's arithmetic, wherever the weights come from."""
        return tuple(self._segment_s(s, load) for s in self.model.segments)

    def _find_bound(self, load: Load) -> Bound:
        """Whether weights are read faster than multiplied with, at so many rows."""
        reading = computing = 0.0
        for s in self.model.segments:
            rows = load.out_rows if s.selects else load.tokens
            for m in s.matrices:
                if not m.lookup:
                    kernel = self.rates.kernel(m.format)
                    reading += m.packed_bytes / kernel.decode_bytes_s
                    computing += 2.0 * rows * m.rows * m.width / kernel.prefill_ops_s
        return "memory" if reading >= computing else "compute"

    def _choosing_s(self, out_rows: int) -> float:
        per_token = constants.SAMPLE + self.model.vocabulary * constants.SAMPLE_LOGIT
        return out_rows * per_token

    def _pack_s(self, unit: UnitOutline) -> float:
        if unit.reads == "rows":
            return 0.0
        return sum(self.rates.pack_s(m.format, m.file_bytes) for m in unit.matrices)

    def _segment_s(self, s: SegmentOutline, load: Load) -> float:
        program = s.segment.program
        weights = {m.name: m for m in s.matrices}
        if s.selects and not load.out_rows:
            return 0.0
        # Products, adds and gates that are fused cost as much by themselves as in one node.
        seconds = self.rates.machine.step_overhead_s + constants.NODE * len(s.lowered.nodes)
        for op in program.ops:
            rows = load.out_rows if program.values[op.output].shape[0] == "R" else load.tokens
            if op.kind == "matmul":
                m = weights[op.inputs[1]]
                operations = 2.0 * rows * m.rows * m.width
                seconds += self.rates.product_s(m.format, m.packed_bytes, operations)
            elif op.kind == "attention":
                seconds += self._attention_s(op, program, load)
            else:
                moved = 4 * rows * _widths(op, program)
                seconds += moved / (constants.ELEMENTWISE_BYTES * self.rates.threads)
        return seconds

    def _attention_s(self, op: Op, program: Program, load: Load) -> float:
        window = op.attrs["window"]
        seen = load.past + load.rows
        # Keys are gone through in whole blocks, of which half of the last is in vain.
        average = load.past + (load.rows + 1) / 2 + (KV_BLOCK / 2 if load.rows > 1 else 0)
        if window:
            seen, average = min(seen, window + load.rows), min(average, window)
        width = program.values[op.inputs[0]].width
        elements = 2 * op.attrs["kv_heads"] * op.attrs["head_dim"]
        position = elements * self._kv_element_bytes
        operations = 4.0 * load.tokens * average * width
        return self.rates.attention_s(load.sequences * position * seen, operations)


def _widths(op: Op, program: Program) -> int:
    """Elements read and written for each row by an Op without a matrix."""
    read = sum(
        program.values[name].width for name in op.inputs if program.values[name].role != "weight"
    )
    return read + program.values[op.output].width
