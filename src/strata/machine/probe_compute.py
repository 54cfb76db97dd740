"""Measures what the processor reaches: reading memory, products of each format, attention.

Each figure is the median of short runs: what is to be predicted shares the machine too.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.reading import native_id
from strata.backends.kv_types import KV_BLOCK
from strata.machine.machine import AttentionRate, Cache, KernelRate, ReadRate
from strata.program import Builder, PagedKV, Weight
from strata.quant import ALL, BlockType

# A matrix of a model of a few billion parameters; every format's blocks divide its width.
_K, _N = 2048, 4096
_PREFILL_ROWS = 128
_PANEL = 16
_LEAST_BUFFER, _MOST_BUFFER = 256 << 20, 512 << 20
_HEADS, _HEAD_DIM, _POSITIONS, _SEQUENCES = 16, 64, 512, 96
_PREFILLS = 8

Bytes = NDArray[np.uint8]


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return (match[1] if match else platform.processor() or platform.machine()).strip()


def caches(root: Path = Path("/")) -> tuple[Cache, ...]:
    """Data caches of the first core, the nearest first; empty where the system does not say."""
    found = []
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match:
            scale = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
            found.append(Cache(level, int(match[1]) * scale, _count_list(shared)))
    return tuple(sorted(found, key=lambda cache: cache.level))


def _count_list(text: str) -> int:
    """CPUs in a list such as ``0-3,8``."""
    total = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            total += int(last or first) - int(first) + 1
    return max(1, total)


class ComputeProbe:
    """Threads, and memory larger than the caches whose bytes stand for weights of any format."""

    def __init__(self, threads: int, isa: str, cache_bytes: int, available: int) -> None:
        self.threads, self.isa = threads, isa
        # A backend hands the codebooks over that some formats are decoded with.
        CpuBackend(1, isa)
        wanted = min(
            max(_LEAST_BUFFER, 4 * cache_bytes), _MOST_BUFFER, max(1 << 22, available // 8)
        )
        # Three copies of the widest format beside the buffer have to fit as well.
        self._rows = min(_N, max(256, available // 16 // (8 * _K) // 64 * 64))
        # Small bytes: scales of any format read from them are finite, and no slow subnormals.
        self._buffer = _aligned(wanted)
        self._buffer[:] = np.resize(_small_bytes(1 << 20), wanted)
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def memory_read(self, seconds: float) -> tuple[ReadRate, ...]:
        """Bandwidth of plain reading at 1, 2, 4 ... threads."""
        counts = sorted({*(2**i for i in range(self.threads.bit_length())), self.threads})
        rates = []
        for count in counts:
            edges = [len(self._buffer) * i // count for i in range(count + 1)]

            def read(i: int, edges: list[int] = edges) -> None:
                _native.read_stream(self.isa, self._buffer[edges[i] : edges[i + 1]])

            best = self._usual(read, count, seconds / len(counts))
            rates.append(ReadRate(count, len(self._buffer) / best))
        return tuple(rates)

    def kernels(self, seconds: float) -> tuple[KernelRate, ...]:
        """Rates of every format that has kernels."""
        usable = [row for row in ALL if not row.integer and _kernel_info(row)]
        return tuple(self._kernel(row, seconds / len(usable)) for row in usable)

    def _kernel(self, row: BlockType, seconds: float) -> KernelRate:
        id = native_id(row)
        size = int(_native.packed_bytes(id, self._rows, _K))
        count = max(1, len(self._buffer) // size)
        matrices = [self._buffer[i * size : (i + 1) * size] for i in range(count)]
        if len(self._buffer) < size:
            matrices = [np.resize(self._buffer, size)]
        acts = {rows: self._acts(row, rows) for rows in (1, _PREFILL_ROWS)}
        outs = {rows: np.empty((rows, self._rows), np.float32) for rows in acts}
        panels = self._rows // _PANEL

        def product(rows: int, matrices: list[Bytes]) -> Callable[[int], None]:
            def work(i: int) -> None:
                begin, end = (panels * j // self.threads for j in (i, i + 1))
                for m in matrices:
                    _native.matmul(
                        self.isa,
                        id,
                        m,
                        self._rows,
                        _K,
                        acts[rows],
                        outs[rows],
                        panel0=begin,
                        panel1=end,
                    )

            return work

        one = self._usual(product(1, matrices[:1]), self.threads, 0.0)
        # As many as give the memory to do, but for formats that are slow in any memory.
        del matrices[max(1, int(seconds * 0.15 / one)) :]
        decode = self._usual(product(1, matrices), self.threads, seconds * 0.4)
        prefill = self._usual(product(_PREFILL_ROWS, matrices[:1]), self.threads, seconds * 0.4)
        file_bytes = row.tensor_nbytes((self._rows, _K))
        stored = np.resize(self._buffer[:file_bytes], file_bytes)
        packed = _aligned(size)

        def pack(i: int) -> None:
            begin, end = (panels * j // self.threads for j in (i, i + 1))
            _native.pack(id, stored, self._rows, _K, packed, begin, end)

        packing = self._usual(pack, self.threads, seconds * 0.2)
        return KernelRate(
            row.name,
            size * len(matrices) / decode,
            2.0 * _PREFILL_ROWS * self._rows * _K / prefill,
            file_bytes / packing,
        )

    def _acts(self, row: BlockType, rows: int) -> NDArray[Any]:
        x = np.random.default_rng(1).standard_normal((rows, _K), np.float32)
        if not _kernel_info(row)["quantised_input"]:
            return x
        width = int(_native.act_row_bytes(_K))
        out = _aligned(rows * width).reshape(rows, width)
        for r in range(rows):
            _native.quantize_row(self.isa, x[r], out[r])
        return out

    def _usual(self, work: Callable[[int], None], threads: int, seconds: float) -> float:
        """Usual time in which ``threads`` threads do their parts, in the seconds given."""
        times: list[float] = []
        ends = perf_counter() + seconds
        while not times or (perf_counter() < ends and len(times) < 50):
            start = perf_counter()
            list(self._pool.map(work, range(threads)))
            times.append(perf_counter() - start)
        return median(times)


def attention(threads: int, isa: str, available: int) -> tuple[AttentionRate, float]:
    """Rates of attention, and seconds of one native call that has next to nothing to do."""
    # KV of more sequences than caches hold, within a fifth of the memory.
    one = 2 * 2 * _HEADS * _HEAD_DIM * _POSITIONS
    sequences = min(_SEQUENCES, max(2, available // 5 // one))
    width = _HEADS * _HEAD_DIM
    builder = Builder("probe", _no_weights, {"x": ("T", width)})
    mixed = builder.attention(
        *("x", "x", "x"),
        layer=0,
        heads=_HEADS,
        kv_heads=_HEADS,
        k_dim=_HEAD_DIM,
        v_dim=_HEAD_DIM,
        scale=_HEAD_DIM**-0.5,
    )
    segment = builder.build(x=mixed)
    backend = CpuBackend(threads, isa)
    (loaded,) = backend.load([segment], _NO_SOURCE)
    kept = PagedKV(_HEADS, _HEAD_DIM, _HEAD_DIM)
    state = backend.state_cache((kept,), (sequences * _POSITIONS // KV_BLOCK,))
    tables = [(np.arange(8 * s, 8 * s + 8, dtype=np.int32),) for s in range(sequences)]

    def time(step: Step, tries: int = 1) -> float:
        times = []
        for _ in range(tries):
            start = perf_counter()
            backend.run(loaded, step, state, {})
            times.append(perf_counter() - start)
        return median(times)

    prefills = [_step([Span(0, _POSITIONS, 0, t)]) for t in tables[:_PREFILLS]]
    for step in prefills:
        # KV that nobody has written yet comes into being page by page, which is no arithmetic.
        time(step)
    prefill = median(map(time, prefills))
    one_each = [Span(s, 1, _POSITIONS - 1, t) for s, t in enumerate(tables)]
    decode = time(_step(one_each), 5)
    nothing = time(_step([Span(0, 1, 0, tables[0])]), 50)
    kv_bytes = 2 * 2 * width * _POSITIONS * sequences
    operations = 4.0 * width * _POSITIONS * ((_POSITIONS + 1) / 2 + KV_BLOCK / 2)
    return AttentionRate(kv_bytes / decode, operations / prefill), nothing


def _step(spans: list[Span]) -> Step:
    positions = np.concatenate([np.arange(s.past, s.past + s.rows, dtype=np.int32) for s in spans])
    tokens = np.zeros(len(positions), np.int32)
    return Step(tokens, positions, tuple(spans), np.zeros(0, np.int32))


class _NoSource:
    """For a Segment without weights."""


_NO_SOURCE: Any = _NoSource()


def _no_weights(name: str) -> Weight:
    raise AssertionError(f"attention has no weight '{name}'")


def _kernel_info(row: BlockType) -> dict[str, Any]:
    """What the kernels of a format take; empty if there are none."""
    info = cast("dict[str, Any] | None", _native.format_info(native_id(row)))
    return info if info is not None and _K % info["elements"] == 0 else {}


def _aligned(nbytes: int) -> Bytes:
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def _small_bytes(count: int) -> Bytes:
    return np.random.default_rng(0).integers(1, 0x38, count, dtype=np.uint8)


@contextmanager
def compute_probe(
    threads: int, isa: str, cache_bytes: int, available: int
) -> Iterator[ComputeProbe]:
    """A ComputeProbe that is closed at the end."""
    probe = ComputeProbe(threads, isa, cache_bytes, available)
    try:
        yield probe
    finally:
        probe.close()
