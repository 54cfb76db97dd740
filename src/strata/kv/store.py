"""A bounded directory of KV blocks that survives restarts. A file is hostile until checked.

A file holds consecutive full blocks of one chain of tokens::

    magic "STRATAKV", version u32, blocks u32, bytes of a block u64        (little endian)
    identity 32    everything the bits depend on: model, KV type, kernels, layout
    parent 32      key of the block before the first one
    tokens i32 [blocks, KV_BLOCK]
    digests 32 [blocks]                                                    (SHA-256 of each block)
    digest 32      of all of the above
    padding to 4096, then the blocks

A block's key is the SHA-256 of its parent's key and its tokens, and a chain begins at the identity:
a key stands for all tokens up to its block on one model. The name of a file is the key of its last
block. Files are written beside their name, synchronised and renamed, never changed, and deleted
when the directory is full, the longest unused first; any number of processes may share them. What
does not check out is deleted with a line in the log.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK
from strata.errors import StrataError

_log = logging.getLogger("strata.kv")

VERSION = 1
_MAGIC = b"STRATAKV"
_HEAD = struct.Struct("<8sIIQ32s32s")
_DIGEST = 32
_PAGE = 4096
_PER_BLOCK = 4 * KV_BLOCK + _DIGEST
_MOST_BLOCKS = 1 << 14
"""Blocks of one file: a million positions."""

Buffer = NDArray[np.uint8]


class StoreError(StrataError):
    """A file of the store that is not what it should be."""


def block_keys(identity: bytes, tokens: Sequence[int]) -> list[bytes]:
    """Keys of the full blocks of ``tokens``."""
    keys, parent = [], identity
    for start in range(0, len(tokens) // KV_BLOCK * KV_BLOCK, KV_BLOCK):
        parent = _key(parent, tokens[start : start + KV_BLOCK])
        keys.append(parent)
    return keys


def _key(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + _packed(tokens)).digest()


def _packed(tokens: Sequence[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


@dataclass(frozen=True)
class _Entry:
    """A file whose header was checked."""

    path: Path
    keys: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    data: int


class PrefixStore:
    """Blocks of ``block_nbytes`` bytes of one ``identity`` (32 bytes) in ``directory``.

    The directory, which other models share, is kept under ``limit`` bytes. Errors of the disk are
    logged and cost what was to be kept, nothing else. Safe from several threads.
    """

    def __init__(self, directory: Path, identity: bytes, block_nbytes: int, limit: int) -> None:
        self._root = directory
        self._own = directory / identity.hex()[:32]
        self.identity = identity
        self._block_nbytes = block_nbytes
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._where: dict[bytes, tuple[str, int]] = {}
        self._seen: int | None = None
        self._failing = False
        try:
            # What people wrote can be told from it.
            self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._own} cannot be made: {error.strerror}") from None
        _delete_abandoned(self._own)

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of ``keys``, from the first, are there."""
        with self._lock:
            self._look()
            for count, key in enumerate(keys):
                if key not in self._where:
                    return count
        return len(keys)

    def kept(self, keys: Sequence[bytes]) -> list[bool]:
        """Of each of ``keys`` whether it is there."""
        with self._lock:
            self._look()
            return [key in self._where for key in keys]

    def load(self, keys: Sequence[bytes], put: Callable[[int, Buffer], None]) -> int:
        """Hand the blocks of ``keys`` to ``put``, each with its number among them, after its digest
        was compared; how many, from the first, are right. A buffer is valid until the next one."""
        done = 0
        used: list[Path] = []
        while done < len(keys):
            with self._lock:
                name, at = self._where.get(keys[done], ("", 0))
                entry = self._entries.get(name)
            if entry is None:
                break
            count = 0
            for key, known in zip(keys[done:], entry.keys[at:], strict=False):
                if key != known:
                    break
                count += 1
            handed = done
            try:
                for buffer in self._read(entry, at, count):
                    put(handed, buffer)
                    handed += 1
            except (OSError, StoreError) as error:
                self._drop(entry.path, error)
                done = handed
                break
            done = handed
            used.append(entry.path)
        _touch(used)
        return done

    def save(
        self, tokens: Sequence[int], first: int, count: int, get: Callable[[int, Buffer], None]
    ) -> None:
        """Keep ``count`` blocks of ``tokens`` from number ``first`` on, of which those that are
        there already are left out. ``get`` fills a buffer with the block of a number."""
        every = block_keys(self.identity, tokens)
        keys = every[first : first + count]
        known = self.find(keys)
        keys = keys[: known + _MOST_BLOCKS]
        with self._lock:
            found = [self._where[key][0] for key in keys[:known] if key in self._where]
            names = dict.fromkeys(found)
        if known < len(keys):
            begin, end = first + known, first + len(keys)
            parent = every[begin - 1] if begin else self.identity
            try:
                new = tokens[begin * KV_BLOCK : end * KV_BLOCK]
                self._write(parent, keys[known:], new, get, begin)
                names[_name(keys[-1])] = None
                self._failing = False
            except OSError as error:
                # Once: a full disk may stay full for many requests.
                if not self._failing:
                    _log.warning("%s: not written: %s", self._own, error.strerror or error)
                self._failing = True
        _touch([self._own / name for name in names])

    def _look(self) -> None:
        """Learn what other processes, or an earlier one, have written or deleted."""
        try:
            stamp = os.stat(self._own).st_mtime_ns
            if stamp == self._seen:
                return
            names = {f.name for f in os.scandir(self._own) if f.name.endswith(".kv")}
        except OSError as error:
            if self._seen is not None:
                _log.warning("%s cannot be read: %s", self._own, error)
            self._seen = None
            self._entries.clear()
            self._where.clear()
            return
        for gone in self._entries.keys() - names:
            self._forget(gone)
        for name in sorted(names - self._entries.keys()):
            try:
                self._enter(self._check(self._own / name))
            except FileNotFoundError:
                continue
            except (OSError, StoreError) as error:
                _discard(self._own / name, error)
        self._seen = stamp

    def _enter(self, entry: _Entry) -> None:
        self._entries[entry.path.name] = entry
        for at, key in enumerate(entry.keys):
            self._where.setdefault(key, (entry.path.name, at))

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        for key in entry.keys if entry else ():
            if self._where.get(key, ("", 0))[0] == name:
                del self._where[key]

    def _drop(self, path: Path, error: Exception) -> None:
        with self._lock:
            self._forget(path.name)
        _discard(path, error)

    def _check(self, path: Path) -> _Entry:
        """The header of a file, every field of it checked."""
        with _opened(path) as fd:
            size = os.fstat(fd).st_size
            head = os.pread(fd, _HEAD.size, 0)
            if len(head) < _HEAD.size:
                raise StoreError("shorter than a header")
            magic, version, count, block_nbytes, identity, parent = _HEAD.unpack(head)
            if (magic, version) != (_MAGIC, VERSION):
                raise StoreError("not a file of this store, or of another version")
            if (identity, block_nbytes) != (self.identity, self._block_nbytes):
                raise StoreError("blocks of another model, KV type or machine")
            data = _data_offset(count)
            if not 0 < count <= _MOST_BLOCKS or size != data + count * block_nbytes:
                raise StoreError(f"{size} bytes, not those of {count} blocks")
            rest = os.pread(fd, count * _PER_BLOCK + _DIGEST, _HEAD.size)
        if len(rest) < count * _PER_BLOCK + _DIGEST:
            raise StoreError("shorter than its header")
        if hashlib.sha256(head + rest[:-_DIGEST]).digest() != rest[-_DIGEST:]:
            raise StoreError("the header is damaged")
        tokens = np.frombuffer(rest, "<i4", count * KV_BLOCK)
        keys = []
        for part in tokens.reshape(count, KV_BLOCK):
            parent = hashlib.sha256(parent + part.tobytes()).digest()
            keys.append(parent)
        if path.name != _name(parent):
            raise StoreError("under another file's name")
        start = 4 * KV_BLOCK * count
        digests = [rest[start + i * _DIGEST : start + (i + 1) * _DIGEST] for i in range(count)]
        return _Entry(path, tuple(keys), tuple(digests), data)

    def _read(self, entry: _Entry, first: int, count: int) -> Iterator[Buffer]:
        """``count`` blocks from number ``first`` of a file, in one buffer, one after the other;
        StoreError at one that has not the digest it should."""
        buffer = np.empty(self._block_nbytes, np.uint8)
        with _opened(entry.path) as fd:
            try:
                for number in range(first, first + count):
                    _exactly(os.preadv, fd, buffer, entry.data + number * self._block_nbytes)
                    if hashlib.sha256(buffer.data).digest() != entry.digests[number]:
                        raise StoreError(f"block {number} is damaged")
                    yield buffer
            finally:
                _uncache(fd)

    def _write(
        self,
        parent: bytes,
        keys: Sequence[bytes],
        tokens: Sequence[int],
        get: Callable[[int, Buffer], None],
        first: int,
    ) -> None:
        count = len(keys)
        size = _data_offset(count) + count * self._block_nbytes
        if not self._make_room(size):
            return
        head = _HEAD.pack(_MAGIC, VERSION, count, self._block_nbytes, self.identity, parent)
        path = self._own / _name(keys[-1])
        temporary = self._own / f"{secrets.token_hex(8)}.tmp"
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            # Held as long as this process lives: who finds it free may delete the file.
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, size)  # others see at once what it will take
            # One block at a time: what is kept must not take memory beside itself.
            buffer, digests = np.empty(self._block_nbytes, np.uint8), []
            for number in range(count):
                get(first + number, buffer)
                digests.append(hashlib.sha256(buffer.data).digest())
                at = _data_offset(count) + number * self._block_nbytes
                _exactly(os.pwritev, fd, buffer, at)
            head += _packed(tokens) + b"".join(digests)
            head += hashlib.sha256(head).digest()
            _exactly(os.pwritev, fd, np.frombuffer(head, np.uint8), 0)
            os.fsync(fd)
            _uncache(fd)
            os.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        _sync_directory(self._own)
        with self._lock:
            self._enter(_Entry(path, tuple(keys), tuple(digests), _data_offset(count)))

    def _make_room(self, size: int) -> bool:
        """Delete the longest unused files of all models until ``size`` bytes more fit the limit."""
        if size > self._limit:
            return False
        files = []
        for path in self._root.glob("*/*"):
            with suppress(OSError):
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
        total = sum(nbytes for _, nbytes, _ in files)
        for _, nbytes, path in sorted(f for f in files if f[2].suffix == ".kv"):
            if total + size <= self._limit:
                break
            with suppress(OSError):
                path.unlink()
            total -= nbytes
            if path.parent == self._own:
                with self._lock:
                    self._forget(path.name)
        return total + size <= self._limit


def _name(key: bytes) -> str:
    return f"{key.hex()}.kv"


def _data_offset(count: int) -> int:
    header = _HEAD.size + count * _PER_BLOCK + _DIGEST
    return -(-header // _PAGE) * _PAGE


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _exactly(move: object, fd: int, buffer: Buffer, offset: int) -> None:
    """``os.preadv`` or ``os.pwritev`` until all bytes are moved, which may take several calls."""
    assert callable(move)
    view = buffer.data
    while view:
        moved: int = move(fd, [view], offset)
        if moved == 0:
            raise StoreError("shorter than its header says")
        offset += moved
        view = view[moved:]


def _uncache(fd: int) -> None:
    """KV is read once and then lives in its blocks: no need of page cache, which counts as ours."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _touch(paths: Sequence[Path]) -> None:
    """Note that files of one chain were used: what comes first counts as used last.

    New ones are noted as well, because the system's own clock for files is a coarse one.
    """
    now = time.time_ns()
    for order, path in enumerate(reversed(paths)):
        with suppress(OSError):
            os.utime(path, ns=(now + order, now + order))


def _discard(path: Path, error: Exception) -> None:
    _log.warning("%s deleted: %s", path, error)
    with suppress(OSError):
        path.unlink()


def _delete_abandoned(directory: Path) -> None:
    """Delete what a process began to write and did not live to finish."""
    for path in directory.glob("*.tmp"):
        with suppress(OSError), _opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
