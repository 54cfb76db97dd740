"""Measures a disk as the runtime uses it: threads that read tiles of one file, far apart in size
and number, past the page cache and through it."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from strata.errors import StrataError
from strata.huge_pages import huge_pages
from strata.machine.machine import DiskRate, ReadMode
from strata.memory.limits import memory_free

_SIZES = (256 << 10, 1 << 20, 4 << 20, 16 << 20)
_DEPTHS = (1, 2, 4, 8)
_SUSTAINED_SHARE = 0.5
_SMALL = 4096
_SMALL_READS = 24
# A file to read where there is none: as much as this, or as a second of writing gives.
_SCRATCH_BYTES = 512 << 20
_LEAST_BYTES = 32 << 20
_WRITE_SECONDS = 1.0
_MODEL_SUFFIXES = (".gguf", ".safetensors")


class DiskProbeError(StrataError):
    """The disk could not be measured: a file that cannot be read, a directory without room."""


def probe_disk(path: Path, seconds: float) -> tuple[tuple[DiskRate, ...], float]:
    """Rates of reading the disk under ``path``, and seconds of one small read.

    A file is read itself; in a directory the largest model file, else a scratch file that is
    removed again. What of the file lay in the page cache is dropped. Direct rates are left out
    where the file system has no direct reads. Raises DiskProbeError.
    """
    try:
        with _something_to_read(path) as file:
            return _measure(file, seconds)
    except OSError as error:
        raise DiskProbeError(f"{path}: the disk cannot be measured: {error}") from None


def _measure(file: Path, seconds: float) -> tuple[tuple[DiskRate, ...], float]:
    size = file.stat().st_size
    modes: list[ReadMode] = ["direct", "buffered"] if _direct_works(file) else ["buffered"]
    # Every thread has a buffer of its own.
    most = min(size, memory_free() // 4)
    combinations: list[tuple[ReadMode, int, int]] = [
        (mode, request, depth)
        for mode in modes
        for request in _SIZES
        for depth in _DEPTHS
        if request * depth <= most
    ]
    if not combinations:
        raise DiskProbeError(f"{file}: there is no free memory to read into: the disk is not known")
    start = 0

    def bandwidth(mode: ReadMode, request: int, depth: int, seconds: float) -> DiskRate:
        nonlocal start
        _drop_cached(file)
        reader = _Reader(file, mode, request, depth, start)
        rate = DiskRate(mode, request, depth, reader.bandwidth(seconds))
        start = reader.next_offset
        return rate

    share = seconds * (1 - _SUSTAINED_SHARE) / len(combinations)
    rates = [bandwidth(*combination, share) for combination in combinations]
    for mode in modes:
        best = max((r for r in rates if r.mode == mode), key=lambda r: r.bytes_s)
        lasting = bandwidth(
            mode, best.request_bytes, best.depth, seconds * _SUSTAINED_SHARE / len(modes)
        ).bytes_s
        # The best of many short runs was lucky: nothing is faster than what lasts.
        rates = [
            replace(r, bytes_s=min(r.bytes_s, lasting)) if r.mode == mode else r for r in rates
        ]
    _drop_cached(file)
    return tuple(rates), _latency(file, modes[0])


class _Reader:
    """``depth`` threads that take requests one after the other, each the next part of the file.

    No part is read twice: the second time it would come from the page cache. Buffered reads are
    made as the runtime makes them, which reads nothing ahead and leaves nothing in the cache.
    """

    def __init__(self, file: Path, mode: ReadMode, request: int, depth: int, start: int) -> None:
        self._request, self._depth = request, depth
        self._size = file.stat().st_size // request * request
        self.next_offset = start // request * request % self._size
        self._fd = _open(file, mode)
        self._drops = mode == "buffered" and hasattr(os, "posix_fadvise")
        if self._drops:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._lock = threading.Lock()
        self._left = self._size // request
        self._done = 0
        self._finished = 0.0
        self._failure: OSError | None = None

    def bandwidth(self, seconds: float) -> float:
        """Bytes a second over about so long, or over the whole file."""
        memory = huge_pages(self._depth * self._request).data
        parts = [memory[i * self._request :][: self._request] for i in range(self._depth)]
        try:
            begin = perf_counter()
            ends = begin + seconds
            workers = [threading.Thread(target=self._work, args=(ends, part)) for part in parts]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            os.close(self._fd)
        if self._failure is not None:
            raise self._failure
        return self._done / (self._finished - begin)

    def _work(self, ends: float, buffer: memoryview) -> None:
        first = True
        try:
            while self._failure is None and (first or perf_counter() < ends):
                with self._lock:
                    if not self._left:
                        break
                    self._left -= 1
                    offset = self.next_offset
                    self.next_offset = (offset + self._request) % self._size
                got = os.preadv(self._fd, [buffer], offset)
                if self._drops:
                    os.posix_fadvise(self._fd, offset, got, os.POSIX_FADV_DONTNEED)
                first = False
                with self._lock:
                    self._done += got
                    self._finished = perf_counter()
                if got == 0:
                    raise OSError(errno.EIO, "the file became shorter")
        except OSError as error:
            self._failure = error


def _latency(file: Path, mode: ReadMode) -> float:
    """Median time of small reads that are far from each other."""
    fd = _open(file, mode)
    pages = max(1, file.stat().st_size // _SMALL)
    times = []
    try:
        with mmap.mmap(-1, _SMALL) as buffer:
            for i in range(_SMALL_READS):
                # Steps of the golden ratio visit the file evenly and no page twice.
                page = int(pages * (i * 0.6180339887 % 1))
                begin = perf_counter()
                os.preadv(fd, [buffer], page * _SMALL)
                times.append(perf_counter() - begin)
    finally:
        os.close(fd)
    return sorted(times)[len(times) // 2]


def _open(file: Path, mode: ReadMode) -> int:
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    return os.open(file, flags | os.O_DIRECT if mode == "direct" else flags)


def _direct_works(file: Path) -> bool:
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        fd = _open(file, "direct")
    except OSError:
        return False
    try:
        with mmap.mmap(-1, _SMALL) as buffer:
            return os.preadv(fd, [buffer], 0) > 0
    except OSError:
        return False
    finally:
        os.close(fd)


def _drop_cached(file: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    fd = _open(file, "buffered")
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextmanager
def _something_to_read(path: Path) -> Iterator[Path]:
    if path.is_file() and path.stat().st_size >= _LEAST_BYTES:
        yield path
        return
    directory = path if path.is_dir() else path.parent
    found = [f for f in directory.iterdir() if f.suffix in _MODEL_SUFFIXES and f.is_file()]
    largest = max(found, key=lambda f: f.stat().st_size, default=None)
    if largest is not None and largest.stat().st_size >= _SCRATCH_BYTES:
        yield largest
        return
    try:
        fd, name = tempfile.mkstemp(prefix="strata-probe-", dir=directory)
    except OSError:
        # Where nothing can be written, the disk for temporary files is the nearest thing to it.
        fd, name = tempfile.mkstemp(prefix="strata-probe-")
    scratch = Path(name)
    try:
        _fill(fd, perf_counter)
        yield scratch
    finally:
        with suppress(OSError):
            os.close(fd)
        scratch.unlink(missing_ok=True)


def _fill(fd: int, clock: Callable[[], float]) -> None:
    """Write for about a second, and at least what can be measured, to the disk itself."""
    piece = os.urandom(4 << 20)
    begin, written = clock(), 0
    while written < _LEAST_BYTES or (written < _SCRATCH_BYTES and clock() - begin < _WRITE_SECONDS):
        os.write(fd, piece)
        written += len(piece)
        if written % (64 << 20) == 0:
            os.fsync(fd)
    # Pages that are not on the disk yet cannot be dropped from the cache.
    os.fsync(fd)
