"""What a Machine reaches with some of its threads: rates looked up, or estimated."""

from __future__ import annotations

from functools import cached_property
from math import sqrt

from strata.errors import UsageError
from strata.machine import constants
from strata.machine.machine import DiskRate, KernelRate, Machine
from strata.quant import by_name
from strata.records import dataclass


@dataclass(frozen=True)
class Rates:
    """The rates of a machine with ``threads`` of its cores."""

    machine: Machine
    threads: int

    @property
    def share(self) -> float:
        """Of the machine's arithmetic."""
        return min(1.0, self.threads / self.machine.cores)

    @cached_property
    def memory_share(self) -> float:
        """Of the bandwidth of reading memory with all cores."""
        points = sorted((r.threads, r.bytes_s) for r in self.machine.memory_read)
        if not points:
            return self.share
        most = max(bytes_s for _, bytes_s in points)
        below = [bytes_s for threads, bytes_s in points if threads <= self.threads]
        return max(self.share, (max(below) if below else points[0][1] * self.share) / most)

    def product_s(self, format: str, nbytes: int, operations: float) -> float:
        """Seconds of a product that reads ``nbytes`` of weights and does so many operations.

        Reading bounds few rows and arithmetic many; between them neither hides all of the other.
        """
        kernel = self.kernel(format)
        reading = nbytes / (kernel.decode_bytes_s * self.memory_share)
        computing = operations / (kernel.prefill_ops_s * self.share)
        return sqrt(reading**2 + computing**2)

    def pack_s(self, format: str, nbytes: int) -> float:
        """Seconds of bringing bytes of a file into the kernels' form, with all threads."""
        return nbytes / (self.kernel(format).pack_bytes_s * self.share)

    def attention_s(self, kv_bytes: float, operations: float) -> float:
        """Seconds of attention that reads so many bytes of KV and does so many operations."""
        rate = self.machine.attention
        reading = kv_bytes / (rate.decode_bytes_s * self.memory_share)
        return max(reading, operations / (rate.prefill_ops_s * self.share))

    @property
    def call_s(self) -> float:
        """Seconds of a native call that has next to nothing to do."""
        return self.machine.step_overhead_s

    @property
    def node_s(self) -> float:
        """Seconds of opening and closing one node's work among the threads."""
        return constants.NODE

    def elementwise_s(self, nbytes: int) -> float:
        """Seconds of an Op without a matrix that reads and writes so many bytes."""
        return nbytes / (constants.ELEMENTWISE_BYTES * self.threads)

    def kernel(self, format: str) -> KernelRate:
        """The rates of a format; of one that was not measured, those of the nearest in size."""
        known = self._kernels.get(format)
        if known is not None:
            return known
        if not self._kernels:
            raise UsageError("the machine has no rates of kernels: probe it again")
        bits = _bytes_per_weight(format)
        return min(self._kernels.values(), key=lambda k: abs(_bytes_per_weight(k.format) - bits))

    @cached_property
    def _kernels(self) -> dict[str, KernelRate]:
        return {k.format: k for k in self.machine.kernels}


def best_read(machine: Machine, largest_request: int, *, large: bool = False) -> DiskRate:
    """The way of reading with requests up to a size, or with ``large`` of the largest such size:
    the one that needs the least memory of those that come within 3 % of the fastest. Buffered
    reads, which also fill the page cache, have to be a third faster than direct ones."""
    fitting = [d for d in machine.disk if d.request_bytes <= largest_request]
    if not fitting:
        raise UsageError("the machine has no rates of its disk: probe it again")
    direct = [d for d in fitting if d.mode == "direct"]
    fastest = max(d.bytes_s for d in fitting)
    if direct and max(d.bytes_s for d in direct) >= 0.75 * fastest:
        fitting = direct
    if large:
        size = max(d.request_bytes for d in fitting)
        fitting = [d for d in fitting if d.request_bytes == size]
    fastest = max(d.bytes_s for d in fitting)
    good = [d for d in fitting if d.bytes_s >= 0.97 * fastest]
    return min(good, key=lambda d: (d.request_bytes * d.depth, d.depth))


def kept_up(machine: Machine, read: DiskRate, ring_bytes: int, each_bytes: float) -> float:
    """Bytes a second that come into a ring buffer of this size by reads of about ``each_bytes``.
    Between two of them a thread has to wake up, and the disk works on what the others have asked
    for."""
    if not ring_bytes:
        return read.bytes_s
    same = [d for d in machine.disk if d.mode == read.mode]
    probed = [d.bytes_s for d in same if d.request_bytes == read.request_bytes]
    under_way = min(ring_bytes * constants.RING_SHARE, constants.READERS * each_bytes)
    seconds = under_way / max(d.bytes_s for d in same) + constants.READ_GAP
    return min(max(probed, default=read.bytes_s), under_way / seconds)


def _bytes_per_weight(format: str) -> float:
    kind = by_name(format)
    return kind.nbytes / kind.elements
