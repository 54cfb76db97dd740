"""Logits of a base model on a disk, in the precision that it gave them: written window by window,
read row by row, and taken up again where a killed run left them.

The file: 8 bytes "STRLOGIT", the length of a JSON object (u64), the object (what the logits are
of), zeros up to a multiple of 4096; then for each window its rows of float32 and the CRC-32 of them
(u32). All numbers are little-endian. A window that is not whole is written anew.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError, UsageError
from strata.formats.errors import DiskFullError
from strata.formats.writing import check_room, is_disk_full
from strata.records import dataclass

MAGIC = b"STRLOGIT"
VERSION = 1
CACHED_BYTES = 4 << 20
"""Of the page cache that is taken at a time, beside what the system reads ahead."""

_ALIGNMENT = 4096
_LONGEST_HEADER = 1 << 20


class KeptLogitsError(StrataError):
    """A file of logits that is damaged, or of something else than is asked for."""


@dataclass(frozen=True)
class LogitsOf:
    """What logits are of. ``model`` is a digest of every byte of the base model and ``numerics``
    what else its bits depend on; ``tokens`` is a digest of the windows' ids as they are run."""

    model: str
    name: str
    numerics: str
    tokens: str
    context: int
    first: int
    windows: int
    vocab_size: int

    @property
    def rows(self) -> int:
        """Scored tokens of a window."""
        return self.context - 1 - self.first

    @property
    def window_bytes(self) -> int:
        """Bytes that a window takes."""
        return 4 * self.rows * self.vocab_size + 4


class KeptLogits:
    """An open file of logits. ``complete`` windows are there, of ``of.windows``."""

    def __init__(self, fd: int, name: str, of: LogitsOf, start: int) -> None:
        self._fd = fd
        self.name = name
        self.of = of
        self._start = start
        self.complete = min((os.fstat(fd).st_size - start) // of.window_bytes, of.windows)

    @classmethod
    def scratch(cls, directory: Path, of: LogitsOf) -> KeptLogits:
        """A file without a name, which is gone with this process however that ends."""
        import tempfile

        check_room(directory, of.windows * of.window_bytes, "the base's logits")
        fd, name = tempfile.mkstemp(dir=directory, prefix="logits-")
        os.unlink(name)
        return cls(fd, f"logits in {directory}", of, 0)

    @classmethod
    def kept(cls, path: Path, of: LogitsOf) -> KeptLogits:
        """The file at ``path``, made where there is none. KeptLogitsError for one of something
        else."""
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
        new = not path.exists()
        try:
            fd = os.open(path, flags | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        try:
            if os.fstat(fd).st_size == 0:
                whole = of.windows * of.window_bytes
                check_room(path.absolute().parent, whole, f"{path} with the base's logits")
                header = _header(of)
                _write(fd, header, 0, str(path))
                return cls(fd, str(path), of, len(header))
            found, start = read_header(fd, str(path))
            _check_same(found, of, path)
            kept = cls(fd, str(path), of, start)
            left = (of.windows - kept.complete) * of.window_bytes
            check_room(path.absolute().parent, left, f"{path} with the base's logits")
            return kept
        except BaseException:
            os.close(fd)
            if new:
                path.unlink(missing_ok=True)
            raise

    def write(self, window: int) -> WindowWriter:
        """Writes the rows of a window, the next one; ``complete`` grows when it is whole."""
        return WindowWriter(self, window)

    def rows(self, window: int) -> Iterator[NDArray[np.float32]]:
        """The rows of a window, one after the other, each valid until the next."""
        row = np.empty(self.of.vocab_size, "<f4")
        at = forgotten = self.place(window)
        crc = 0
        for _ in range(self.of.rows):
            _read(self._fd, row.data.cast("B"), at, self.name)
            crc = zlib.crc32(row.data, crc)
            at += row.nbytes
            yield row
            if at - forgotten >= CACHED_BYTES:
                self._forget_cached(forgotten, at)
                forgotten = at
        kept = bytearray(4)
        _read(self._fd, memoryview(kept), at, self.name)
        if int.from_bytes(kept, "little") != crc:
            raise KeptLogitsError(
                f"{self.name}: window {window + 1} is damaged: delete the file, it is made anew"
            )
        self._forget_cached(forgotten, at + 4)

    def place(self, window: int) -> int:
        """Where a window begins."""
        return self._start + window * self.of.window_bytes

    def _forget_cached(self, first: int, end: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, first, end - first, os.POSIX_FADV_DONTNEED)

    def put(self, data: memoryview, at: int) -> None:
        """Write bytes, so that no more than CACHED_BYTES of them wait in the page cache.
        DiskFullError where there is no room."""
        while data:
            piece = data[:CACHED_BYTES]
            _write(self._fd, piece, at, self.name)
            os.fsync(self._fd)
            self._forget_cached(at, at + len(piece))
            data, at = data[CACHED_BYTES:], at + len(piece)

    def finish(self, window: int) -> None:
        """All of a window was written."""
        self.complete = max(self.complete, window + 1)

    def restart(self) -> None:
        """Forget all windows: the room is for other ones."""
        self.complete = 0

    def close(self) -> None:
        """Give the file back; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> KeptLogits:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class WindowWriter:
    """Writes one window, rows as they come."""

    def __init__(self, file: KeptLogits, window: int) -> None:
        self._file = file
        self._window = window
        self._at = file.place(window)
        self._crc = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Write rows [rows, vocabulary]."""
        data = np.ascontiguousarray(rows, dtype="<f4")
        view = data.data.cast("B")
        self._crc = zlib.crc32(view, self._crc)
        self._file.put(view, self._at)
        self._at += len(view)

    def done(self) -> None:
        """All rows were given."""
        assert self._at == self._file.place(self._window + 1) - 4
        self._file.put(memoryview(self._crc.to_bytes(4, "little")), self._at)
        self._file.finish(self._window)


def read_header(fd: int, name: str) -> tuple[LogitsOf, int]:
    """What a file says that its logits are of, and where they begin."""
    head = os.pread(fd, 16, 0)
    length = int.from_bytes(head[8:16], "little")
    if head[:8] != MAGIC or length > _LONGEST_HEADER:
        raise KeptLogitsError(f"{name} is not a file of logits: choose another name")
    try:
        said: dict[str, Any] = json.loads(os.pread(fd, length, 16))
        version = said.pop("version")
        if version != VERSION:
            raise KeptLogitsError(
                f"{name} has version {version!r}, and only {VERSION} is known: delete it"
            )
        of = LogitsOf(**said)
        kinds = LogitsOf.__annotations__
        for key, value in asdict(of).items():
            if type(value).__name__ != kinds[key]:
                raise ValueError(key)
        if not (0 <= of.first < of.context - 1 and of.windows > 0 and of.vocab_size > 0):
            raise ValueError("sizes")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise KeptLogitsError(f"{name} is damaged: delete it, it is made anew") from None
    return of, _padded(16 + length)


def peek(path: Path) -> LogitsOf | None:
    """What the file at ``path`` is of, None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return read_header(fd, str(path))[0] if os.fstat(fd).st_size else None
    finally:
        os.close(fd)


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _header(of: LogitsOf) -> bytes:
    text = json.dumps({"version": VERSION, **asdict(of)}).encode()
    data = MAGIC + len(text).to_bytes(8, "little") + text
    return data.ljust(_padded(len(data)), b"\0")


def _check_same(found: LogitsOf, wanted: LogitsOf, path: Path) -> None:
    what = {
        "model": "the base model",
        "numerics": "the machine's instruction set or KV type",
        "tokens": "the text, or how much of it is scored",
        "context": "the windows' length",
        "first": "which tokens are scored",
        "windows": "the number of windows",
        "vocab_size": "the vocabulary",
    }
    for field, name in what.items():
        if getattr(found, field) != getattr(wanted, field):
            raise KeptLogitsError(
                f"{path} holds logits of something else ({name} differs; it was made of "
                f"{found.name}, {found.windows} windows of {found.context}): choose another name "
                "or delete it"
            )


def _write(fd: int, data: bytes | memoryview, at: int, name: str) -> None:
    view = memoryview(data)
    try:
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{name}: the disk became full: make room (what is there is kept), take fewer "
                "--chunks, or choose another directory"
            ) from None
        raise KeptLogitsError(f"{name} cannot be written: {error.strerror}") from None


def _read(fd: int, buffer: memoryview, at: int, name: str) -> None:
    while buffer:
        try:
            got = os.preadv(fd, [buffer], at)
        except OSError as error:
            raise KeptLogitsError(f"{name} cannot be read: {error.strerror}") from None
        if not got:
            raise KeptLogitsError(f"{name} was cut off: delete it, it is made anew")
        buffer, at = buffer[got:], at + got
