"""A bounded directory of KV blocks that survives restarts. A file is hostile until checked.

A file holds consecutive full blocks of one chain of tokens::

    magic "STRATAKV", version u32, blocks u32, bytes of a block u64        (little endian)
    identity 32    everything the bits depend on: model, KV type, kernels, layout
    parent 32      key of the block before the first one
    label 64       what it is of, for people
    tokens i32 [blocks, KV_BLOCK]
    lengths u64 [blocks]           bytes of each block here; fewer than it has: ``packed``
    digests 32 [blocks]                                                    (SHA-256 of each block)
    digest 32      of all of the above, keyed with the directory's secret
    padding to 4096, then the blocks

A block's key is the SHA-256 of its parent's key and its tokens, and a chain begins at the identity:
a key stands for all tokens up to its block on one model. A file is named after the key of its last
block. Files are written beside their name, synchronised and renamed, never changed, and deleted
when the directory is full, the longest unused first; any number of processes may share them. One
of ours (``store_directory``) that does not check out is deleted with a line in the log.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import logging
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK
from strata.huge_pages import HUGE_PAGE, huge_pages
from strata.kv.block_packing import UNPACKING_BYTES, packed, unpacked
from strata.kv.store_directory import ForeignFileError, StoreDirectory, StoreError
from strata.records import dataclass

_log = logging.getLogger("strata.kv")

VERSION = 4
_MAGIC = b"STRATAKV"
_HEAD = struct.Struct("<8sIIQ32s32s64s")
_LABEL = 64
_DIGEST = 32
_PAGE = 4096
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PER_BLOCK = 4 * KV_BLOCK + 8 + _DIGEST
_MOST_BLOCKS = 1 << 14
"""Blocks of one file: a million positions."""

_READERS = 4
"""Threads that load, with a buffer of a block each: one that compares digests does not read."""
_READ_BYTES = 16 << 20
"""Of their buffers, if two take no more."""
_PART_BYTES = 4 << 20
"""Which a thread reads in a row."""

Buffer = NDArray[np.uint8]
_NONE = np.empty(0, np.int32)
_PACKED: Final = "kvz"


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


class _NothingGained(Exception):
    """No block became smaller."""


@dataclass(frozen=True)
class Entry:
    """A file whose header was checked: ``keys`` of its blocks, that of the block before them, and
    their tokens, which are not kept for long."""

    name: str
    keys: tuple[bytes, ...]
    offsets: tuple[int, ...]
    """Where each block begins, and where the last one ends."""
    digests: tuple[bytes, ...]
    parent: bytes
    label: str
    tokens: NDArray[np.int32]

    @property
    def compressed(self) -> bool:
        """Whether its blocks were made smaller."""
        return self.name.endswith(_PACKED)

    def name_in(self, directory: StoreDirectory, identity: bytes) -> str:
        """What it is called in a directory."""
        return directory.name(identity, self.keys[-1], _PACKED if self.compressed else "kv")


@dataclass(frozen=True)
class _Part:
    """``count`` blocks of a file from ``at`` on, the first of which is number ``number`` of what is
    loaded."""

    entry: Entry
    at: int
    count: int
    number: int


def _room_bytes(block_nbytes: int) -> int:
    """Into which a block is read, with whatever of its first and last page is not its own."""
    nbytes = block_nbytes + 2 * _PAGE
    return nbytes if nbytes <= HUGE_PAGE // 8 else -(-nbytes // HUGE_PAGE) * HUGE_PAGE


def _readers(block_nbytes: int) -> int:
    return min(_READERS, max(2, _READ_BYTES // _room_bytes(block_nbytes)))


def loading_bytes(block_nbytes: int) -> int:
    """Bytes of buffers that loading blocks of so many bytes takes, compressed ones too."""
    each = _room_bytes(block_nbytes) + block_nbytes + UNPACKING_BYTES
    return _readers(block_nbytes) * each


class _Buffers:
    """Into which a thread reads blocks, one after the other."""

    def __init__(self, block_nbytes: int) -> None:
        self._block_nbytes = block_nbytes

    @cached_property
    def room(self) -> Buffer:
        """A block's bytes as they lie in a file, and what is beside them in their pages."""
        nbytes = _room_bytes(self._block_nbytes)
        if nbytes >= HUGE_PAGE:
            return huge_pages(nbytes)
        room = np.empty(nbytes + _PAGE, np.uint8)
        return room[-room.ctypes.data % _PAGE :]

    @cached_property
    def _block(self) -> Buffer:
        return np.empty(self._block_nbytes, np.uint8)

    def whole(self, part: Buffer) -> Buffer:
        """The block of which this lies in a file; valid until the next one."""
        return part if len(part) == self._block_nbytes else unpacked(part, self._block)


class PrefixStore:
    """Blocks of ``block_nbytes`` bytes of one ``identity`` (32 bytes) in ``directory``, which other
    models share.

    Errors of the disk are logged and cost what was to be kept, nothing else. Safe from several
    threads.
    """

    def __init__(
        self, directory: StoreDirectory, identity: bytes, block_nbytes: int, label: str = ""
    ) -> None:
        self.directory = directory
        self._label = label.encode(errors="replace")[:_LABEL]
        self.identity = identity
        self.block_nbytes = block_nbytes
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._where: dict[bytes, tuple[str, int]] = {}
        self._odd: set[str] = set()
        self._seen: int | None = None

    def copy(self, entry: Entry, target: StoreDirectory) -> bool:
        """Bring a file to another directory, every block compared on the way; whether it is there.
        OSError, and StoreError where it is damaged or has no room."""
        other = PrefixStore(target, self.identity, self.block_nbytes, entry.label)
        with suppress(FileNotFoundError, StoreError):
            other.check(entry.name_in(target, self.identity))
            return True
        parts = (part for part, _ in self._read(entry, 0, len(entry.keys)))
        nbytes = entry.offsets[-1] - entry.offsets[0]
        if target.make_room(_data_offset(len(entry.keys)) + nbytes):
            name = entry.name_in(target, self.identity)
            other._write(name, entry.parent, entry.keys, entry.tokens.tolist(), parts, nbytes)
        return bool(other._entries)

    def compress(self, entry: Entry) -> str:
        """Have a file's blocks take less room, to the bit what they were; the name that it has
        then, or the same where nothing is gained. OSError, and StoreError where it is damaged."""
        if entry.compressed:
            return entry.name
        name = self.directory.name(self.identity, entry.keys[-1], _PACKED)
        other = PrefixStore(self.directory, self.identity, self.block_nbytes, entry.label)
        nbytes = entry.offsets[-1] - entry.offsets[0]
        parts = (packed(block) for _, block in self._read(entry, 0, len(entry.keys)))
        try:
            # Beside what it is made of: for that time the directory may be too large by one file.
            other._write(name, entry.parent, entry.keys, entry.tokens.tolist(), parts, nbytes)
        except _NothingGained:
            return entry.name
        self.directory.succeed(name, entry.name)
        return name

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
        was compared; how many, from the first, are right. Several threads read, compare and call
        ``put``, in any order; a buffer is valid until that comes back."""
        parts = deque(self._parts(keys))
        right = sum(part.count for part in parts)
        lock = threading.Lock()

        def work() -> None:
            nonlocal right
            buffers = _Buffers(self.block_nbytes)
            while True:
                with lock:
                    # In their order: all that comes before what is not right is looked at.
                    if not parts or parts[0].number >= right:
                        return
                    part = parts.popleft()
                number = part.number
                try:
                    for _, block in self._read(part.entry, part.at, part.count, buffers):
                        put(number, block)
                        number += 1
                except (OSError, StoreError) as error:
                    self._drop(part.entry.name, error)
                    with lock:
                        right = min(right, number)

        others = min(_readers(self.block_nbytes), len(parts)) - 1
        if not parts:
            return 0
        if others < 1:
            work()
        else:
            with ThreadPoolExecutor(others, "strata-kv-load") as pool:
                try:
                    done = [pool.submit(work) for _ in range(others)]
                    work()
                    for future in done:
                        future.result()
                finally:
                    with lock:
                        parts.clear()
        self.touch(keys[:right])
        return right

    def touch(self, keys: Sequence[bytes]) -> None:
        """Note that the blocks of ``keys`` were used: what comes first goes last."""
        with self._lock:
            where = [self._where[key][0] for key in keys if key in self._where]
        self.directory.touch(list(dict.fromkeys(where)))

    def _parts(self, keys: Sequence[bytes]) -> Iterator[_Part]:
        """Where the blocks of ``keys`` are, as far as all of them are there."""
        number = 0
        most = max(1, _PART_BYTES // self.block_nbytes)
        with self._lock:
            while number < len(keys):
                name, at = self._where.get(keys[number], ("", 0))
                entry = self._entries.get(name)
                if entry is None:
                    return
                count = 0
                for key, known in zip(keys[number : number + most], entry.keys[at:], strict=False):
                    if key != known:
                        break
                    count += 1
                yield _Part(entry, at, count, number)
                number += count

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
            nbytes, name = (end - begin) * self.block_nbytes, self._name(keys[-1])

            def parts() -> Iterator[Buffer]:
                # One block at a time: what is kept must not take memory beside itself.
                buffer = np.empty(self.block_nbytes, np.uint8)
                for number in range(begin, end):
                    get(number, buffer)
                    yield buffer

            try:
                if self.directory.make_room(_data_offset(end - begin) + nbytes):
                    new = tokens[begin * KV_BLOCK : end * KV_BLOCK]
                    self._write(name, parent, keys[known:], new, parts(), nbytes)
                names[name] = None
            except (OSError, StoreError) as error:
                self.directory.failed(error)
        self.directory.touch(list(names))

    def _look(self) -> None:
        """Learn what other processes, or an earlier one, have written or deleted."""
        try:
            stamp = self.directory.stamp()
            if stamp == self._seen:
                return
            names = self.directory.names(self.identity)
        except OSError as error:
            self.directory.failed(error)
            self._seen = None
            self._entries.clear()
            self._where.clear()
            return
        for gone in self._entries.keys() - names:
            self._forget(gone)
        self._odd &= names
        for name in sorted(names - self._entries.keys() - self._odd):
            try:
                self._enter(self.check(name))
            except (OSError, StoreError) as error:
                self._discard(name, error)
        self._seen = stamp

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.name] = replace(entry, tokens=_NONE)
        for at, key in enumerate(entry.keys):
            self._where.setdefault(key, (entry.name, at))

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        for key in entry.keys if entry else ():
            if self._where.get(key, ("", 0))[0] == name:
                del self._where[key]

    def _drop(self, name: str, error: Exception) -> None:
        with self._lock:
            self._forget(name)
            self._discard(name, error)

    def _discard(self, name: str, error: Exception) -> None:
        """Do without a file; only what is ours and is not right is deleted."""
        if isinstance(error, FileNotFoundError):
            return
        path = self.directory.path / name
        if isinstance(error, (OSError, ForeignFileError)):
            _log.warning("%s is not used: %s", path, error)
            self._odd.add(name)
            return
        _log.warning("%s deleted: %s", path, error)
        self.directory.delete(name)

    def check(self, name: str) -> Entry:
        """The header of a file, every field of it checked; StoreError for one that is not right."""
        with self.directory.opened(name) as fd:
            size = os.fstat(fd).st_size
            head = os.pread(fd, _HEAD.size, 0)
            if len(head) < _HEAD.size:
                raise StoreError("shorter than a header")
            magic, version, count, block_nbytes, identity, parent, label = _HEAD.unpack(head)
            if (magic, version) != (_MAGIC, VERSION):
                raise StoreError("not a file of this store, or of another version")
            if (identity, block_nbytes) != (self.identity, self.block_nbytes):
                raise StoreError("blocks of another model, KV type or machine")
            data = _data_offset(count)
            if not 0 < count <= _MOST_BLOCKS or size < data:
                raise StoreError(f"{size} bytes, not those of {count} blocks")
            rest = os.pread(fd, count * _PER_BLOCK + _DIGEST, _HEAD.size)
        if len(rest) < count * _PER_BLOCK + _DIGEST:
            raise StoreError("shorter than its header")
        if not hmac.compare_digest(self.directory.digest(head + rest[:-_DIGEST]), rest[-_DIGEST:]):
            raise StoreError("the header is damaged")
        tokens = np.frombuffer(rest, "<i4", count * KV_BLOCK)
        keys, before = [], parent
        for part in tokens.reshape(count, KV_BLOCK):
            parent = hashlib.sha256(parent + part.tobytes()).digest()
            keys.append(parent)
        if name not in (self._name(parent), self.directory.name(self.identity, parent, _PACKED)):
            raise StoreError("under another file's name")
        start = 4 * KV_BLOCK * count
        offsets = [data]
        for length in struct.unpack_from(f"<{count}Q", rest, start):
            if not 0 < length <= block_nbytes:
                raise StoreError(f"a block of {length} bytes")
            offsets.append(offsets[-1] + length)
        if size != offsets[-1]:
            raise StoreError(f"{size} bytes, not those of {count} blocks")
        start += 8 * count
        digests = [rest[start + i * _DIGEST : start + (i + 1) * _DIGEST] for i in range(count)]
        said = label.rstrip(b"\0").decode(errors="replace")
        return Entry(name, tuple(keys), tuple(offsets), tuple(digests), before, said, tokens)

    def _read(
        self, entry: Entry, first: int, count: int, buffers: _Buffers | None = None
    ) -> Iterator[tuple[Buffer, Buffer]]:
        """``count`` blocks from number ``first`` of a file, as they lie there and as they are, in
        the same buffers one after the other; StoreError at one that has not the digest it
        should."""
        if buffers is None:
            buffers = _Buffers(self.block_nbytes)
        room = buffers.room
        with self.directory.opened(entry.name) as fd:
            _past_cache(fd, True)
            for number in range(first, first + count):
                at, end = entry.offsets[number : number + 2]
                begin = at // _PAGE * _PAGE
                _pages(fd, room[: -(-(end - begin) // _PAGE) * _PAGE], begin, end - begin)
                part = room[at - begin : end - begin]
                block = buffers.whole(part)
                if hashlib.sha256(block.data).digest() != entry.digests[number]:
                    raise StoreError(f"block {number} is damaged")
                yield part, block

    def _write(
        self,
        name: str,
        parent: bytes,
        keys: Sequence[bytes],
        tokens: Sequence[int],
        parts: Iterator[Buffer],
        most: int,
    ) -> None:
        """A file of blocks, of which ``parts`` gives what lies there, ``most`` bytes at most."""
        count, digests = len(keys), []
        offsets = [_data_offset(count)]
        head = _HEAD.pack(
            _MAGIC, VERSION, count, self.block_nbytes, self.identity, parent, self._label
        )
        buffers = _Buffers(self.block_nbytes)
        with self.directory.new(name, offsets[0] + most) as fd:
            for part in parts:
                block = buffers.whole(part)
                digests.append(hashlib.sha256(block.data).digest())
                _exactly(fd, part, offsets[-1])
                offsets.append(offsets[-1] + len(part))
            if name.endswith(_PACKED) and offsets[-1] == offsets[0] + count * len(block):
                raise _NothingGained
            os.ftruncate(fd, offsets[-1])
            head += _packed(tokens)
            head += struct.pack(f"<{count}Q", *np.diff(offsets).tolist())
            head += b"".join(digests)
            head += self.directory.digest(head)
            _exactly(fd, np.frombuffer(head, np.uint8), 0)
        self.directory.worked()
        with self._lock:
            entry = Entry(name, tuple(keys), tuple(offsets), tuple(digests), parent, "", _NONE)
            self._enter(entry)

    def _name(self, key: bytes) -> str:
        return self.directory.name(self.identity, key)


def header_of(directory: StoreDirectory, name: str) -> tuple[bytes, int, int]:
    """What a file says of itself, unchecked: its identity, bytes of a block, and how many blocks
    there may be."""
    with directory.opened(name) as fd:
        head = os.pread(fd, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        raise StoreError("shorter than a header")
    _, _, count, nbytes, identity, _, _ = _HEAD.unpack(head)
    return identity, nbytes, min(count, _MOST_BLOCKS)


def _data_offset(count: int) -> int:
    header = _HEAD.size + count * _PER_BLOCK + _DIGEST
    return -(-header // _PAGE) * _PAGE


def _past_cache(fd: int, past: bool) -> bool:
    """Have reads go past the system's cache, or through it; whether that is another way than
    before. Going through it costs as much processor time as comparing digests does."""
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    now = before | _DIRECT if past else before & ~_DIRECT
    if now != before:
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETFL, now)
    return fcntl.fcntl(fd, fcntl.F_GETFL) != before


def _pages(fd: int, buffer: Buffer, offset: int, least: int) -> None:
    """Read into a buffer of whole pages, ``least`` bytes of it at least: a file may end there."""
    got = 0
    while got < least:
        try:
            moved = os.preadv(fd, [buffer.data[got:]], offset + got)
        except OSError as error:
            # After part of a page, or where the file system wants more than pages.
            if error.errno != errno.EINVAL or not _past_cache(fd, False):
                raise
            continue
        if moved == 0:
            raise StoreError("shorter than its header says")
        got += moved


def _exactly(fd: int, buffer: Buffer, offset: int) -> None:
    """Write all of a buffer, which may take several calls."""
    view = buffer.data
    while view:
        moved = os.pwritev(fd, [view], offset)
        offset += moved
        view = view[moved:]
