"""The Machine: what a probe measured, as data that can be kept in a file and used elsewhere.

All sizes are bytes, all rates per second, all times seconds.
"""

from __future__ import annotations

from typing import Literal

from strata.records import dataclass

_NOISE = 0.15
"""Of speed or of processors, from which on a probe is not trusted: figures of a quiet machine
repeat within some hundredths."""

ReadMode = Literal["direct", "buffered"]


@dataclass(frozen=True)
class Cache:
    """One level of a core's caches; ``shared_by`` counts the cores that share it."""

    level: int
    nbytes: int
    shared_by: int


@dataclass(frozen=True)
class ReadRate:
    """Bandwidth of reading memory with a number of threads."""

    threads: int
    bytes_s: float


@dataclass(frozen=True)
class KernelRate:
    """What the products of one block format reach with all threads.

    ``decode_bytes_s`` are bytes of packed weights with one row of activations, ``prefill_ops_s``
    operations (2 a multiply-add) with many, ``pack_bytes_s`` bytes of the file brought into the
    kernels' form.
    """

    format: str
    decode_bytes_s: float
    prefill_ops_s: float
    pack_bytes_s: float


@dataclass(frozen=True)
class AttentionRate:
    """Attention with all threads: KV bytes with one query row, operations with many."""

    decode_bytes_s: float
    prefill_ops_s: float


@dataclass(frozen=True)
class DiskRate:
    """Bandwidth of sequential reads of one request size with ``depth`` of them under way."""

    mode: ReadMode
    request_bytes: int
    depth: int
    bytes_s: float


@dataclass(frozen=True)
class Machine:
    """A machine as measured: what the planner needs to know of it.

    ``memory_total`` is what a process can have at most, ``memory_available`` what it may still
    take: free memory, both cut by the limits of the cgroups above it. ``read_latency_s`` is the
    time of one small read, ``step_overhead_s`` that of one native call. Disk rates are those of the
    disk that holds the model.

    ``spread`` is by what part reading memory with all threads was slower at its slowest, first and
    last in the probe; ``busy`` the part of the processors' time that other processes took
    meanwhile.
    """

    cpu: str
    cores: int
    isa: str
    caches: tuple[Cache, ...]
    memory_total: int
    memory_available: int
    memory_read: tuple[ReadRate, ...]
    kernels: tuple[KernelRate, ...]
    attention: AttentionRate
    step_overhead_s: float
    disk: tuple[DiskRate, ...]
    read_latency_s: float
    spread: float = 0.0
    busy: float = 0.0

    @property
    def noisy(self) -> bool:
        """Whether what was measured is hardly what the machine can do."""
        return self.spread > _NOISE or self.busy > _NOISE
