"""A directory of the store's own: what may be deleted there is known; nothing else is touched.

It holds a file that marks it and keeps a random secret, ``strata-kv-store``, and::

    <model 32>-<key 64>-<tag 16>.kv       KV that is kept
    <model 32>-<key 64>-<tag 16>.kvz      the same, compressed
    <model 32>-<key 64>-<tag 16>.texts    tokens of texts that were kept for guesses
    <random 32>-<tag 16>.tmp              what is being written       (all in hexadecimal digits)

A tag is the keyed digest of what stands before it: a name that has the right one was given here and
by no one else. Where anything else lies the directory is refused when it is opened; what comes to
lie there later is passed over. Everything is reached from the directory's descriptor and opened
without following links; nothing but regular files of the same user is opened, changed or deleted.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import logging
import os
import re
import secrets
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from strata.errors import StrataError
from strata.formats.errors import shown
from strata.records import dataclass

_log = logging.getLogger("strata.kv")

MARK = "strata-kv-store"
_MARK_HEAD = b"Strata KV store 2\n"
_MARK_TEXT = re.compile(re.escape(_MARK_HEAD) + rb"([0-9a-f]{64})\n")
_MARK_BYTES = 1000
_NAME = re.compile(r"([0-9a-f]{32}-[0-9a-f]{64}|[0-9a-f]{32})-[0-9a-f]{16}\.(kv|kvz|texts|tmp)")
_KEPT = (".kv", ".kvz")
_FIRST_LAYOUT = re.compile(r"[0-9a-f]{32}")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Neither a link nor a wait: a pipe has no end to wait for."""


class StoreError(StrataError):
    """A directory that cannot be a store, or a file of one that is not what it should be."""


class ForeignFileError(StoreError):
    """Something that is not the store's stands in the place of a file."""


@dataclass(frozen=True)
class StoreFile:
    """A file of a store: its bytes, when it was last used (seconds), and whether it stays."""

    name: str
    nbytes: int
    used: float
    pinned: bool


class StoreDirectory:
    """The directory at ``path``, made if need be, kept under ``limit`` bytes.

    Raises StoreError, and changes nothing, where there is something that the store did not make, or
    where others own it or may write. Safe from several threads and processes.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._listing = threading.Lock()
        self._failing = False
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A link here is the user's own way to say where: what it leads to is what is checked.
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(f"{path} cannot be made a KV store: {reason}") from None
        # With the object, not by a call: a thread that still writes must not come to write into
        # what has got the descriptor's number since.
        weakref.finalize(self, os.close, self._fd).atexit = False
        try:
            self._check_owner()
            self._key = self._secret()
            self._check_names()
            self._delete_abandoned()
        except OSError as error:
            raise StoreError(f"{path} cannot be a KV store: {error.strerror or error}") from None

    def digest(self, data: bytes) -> bytes:
        """32 bytes that only who knows this directory's secret can make: HMAC-SHA-256."""
        return hmac.digest(self._key, data, "sha256")

    def name(self, model: bytes, key: bytes, kind: Literal["kv", "kvz", "texts"] = "kv") -> str:
        """Of the file whose last block has ``key``, which is of the model ``model``."""
        return self._tagged(f"{_model(model)}{key.hex()}", kind)

    def stamp(self) -> int:
        """Changes whenever a file comes or goes."""
        return os.fstat(self._fd).st_mtime_ns

    def names(self, model: bytes) -> set[str]:
        """Files of a model."""
        return {n for n in self._ours(*_KEPT) if n.startswith(_model(model))}

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """A descriptor to read from; ForeignFileError if it is not a file of ours any more."""
        # Looked at before, because opening some devices does something.
        if not _is_file(os.stat(name, dir_fd=self._fd, follow_symlinks=False)):
            raise ForeignFileError("not a file of this store")
        fd = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=self._fd)
        try:
            if not _is_file(os.fstat(fd)):
                raise ForeignFileError("not a file of this store")
            yield fd
        finally:
            _uncache(fd)
            os.close(fd)

    @contextmanager
    def new(self, name: str, size: int) -> Iterator[int]:
        """A descriptor to write ``size`` bytes to (or fewer, where it is cut), which are then the
        file ``name`` and on the disk; nothing is left of them after an error."""
        temporary = self._tagged(secrets.token_hex(16), "tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _SAFELY
        fd = os.open(temporary, flags, 0o600, dir_fd=self._fd)
        try:
            # Held as long as this process lives: who finds it free may delete the file.
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, size)  # others see at once what it will take
            yield fd
            os.fsync(fd)
            _uncache(fd)
            if self._stat(name) is False:
                raise ForeignFileError(f"{name} is there and not a file of this store")
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)
        os.fsync(self._fd)

    def delete(self, name: str) -> None:
        """Delete a file of ours."""
        with suppress(OSError):
            if self._stat(name):
                os.unlink(name, dir_fd=self._fd)

    def files(self) -> list[StoreFile]:
        """All that is kept, of all models, the longest unused first."""
        out = []
        for name in self._ours(*_KEPT):
            seen = self._stat(name)
            if seen:
                out.append(StoreFile(name, seen.st_size, seen.st_mtime, _is_pinned(seen)))
        return sorted(out, key=lambda file: (file.used, file.name))

    def clear(self) -> None:
        """Delete all that is kept, with the texts that guesses are made from."""
        for name in self._ours(*_KEPT, ".texts"):
            self.delete(name)

    def pin(self, name: str, pinned: bool) -> None:
        """Have a file stay whatever has no room, or no longer. OSError, ForeignFileError."""
        with self.opened(name) as fd:
            os.fchmod(fd, 0o400 if pinned else 0o600)

    def succeed(self, name: str, old: str) -> None:
        """Delete a file of ours for another one that holds the same: pinned as it was, and used
        when it was."""
        with self.opened(old) as before, self.opened(name) as fd:
            seen = os.fstat(before)
            os.fchmod(fd, stat.S_IMODE(seen.st_mode))
            os.utime(fd, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        self.delete(old)

    def touch(self, names: Sequence[str]) -> None:
        """Note that files of one chain were used: what comes first counts as used last.

        New ones are noted as well, because the system's own clock for files is a coarse one.
        """
        now = time.time_ns()
        for order, name in enumerate(reversed(names)):
            with suppress(OSError):
                if self._stat(name):
                    times = (now + order, now + order)
                    os.utime(name, ns=times, dir_fd=self._fd, follow_symlinks=False)

    def make_room(self, size: int) -> bool:
        """Delete the longest unused files of all models until ``size`` bytes more fit the limit;
        nothing where they do not fit beside what is pinned."""
        files, total = [], 0
        for name in self._ours(*_KEPT, ".texts", ".tmp"):
            seen = self._stat(name)
            if not seen:
                continue
            total += seen.st_size
            if not name.endswith(".tmp") and not _is_pinned(seen):
                files.append((seen.st_mtime_ns, seen.st_size, name))
        if total - sum(nbytes for _, nbytes, _ in files) + size > self.limit:
            return False
        for _, nbytes, name in sorted(files):
            if total + size <= self.limit:
                break
            self.delete(name)
            total -= nbytes
        return total + size <= self.limit

    def failed(self, error: Exception) -> None:
        """Say that nothing is kept. Once: a full disk may stay full for many requests."""
        if not self._failing:
            reason = getattr(error, "strerror", None) or error
            _log.warning("%s: KV is not kept while this lasts: %s", self.path, reason)
        self._failing = True

    def worked(self) -> None:
        """What was written is kept: the next failure is another one."""
        self._failing = False

    def _check_owner(self) -> None:
        seen = os.fstat(self._fd)
        if seen.st_uid != os.geteuid():
            raise StoreError(
                f"{self.path} belongs to another user (number {seen.st_uid}), who could change "
                "what the model answers: give the KV store a directory of your own"
            )
        if seen.st_mode & _OTHERS_WRITE:
            raise StoreError(
                f"others may write in {self.path} (mode {stat.S_IMODE(seen.st_mode):o}) and so "
                "change what the model answers: give the KV store a new directory, or take their "
                "right with chmod go-w if nobody else has used it"
            )

    def _secret(self) -> bytes:
        """The secret in the mark. An empty directory is marked first."""
        names = self._list()
        if MARK not in names and names:
            raise self._foreign(min(names))
        mark = self.path / MARK
        if self._stat(MARK) is False:
            raise StoreError(f"{mark} is not a file of yours: give the KV store a new directory")
        fd = os.open(MARK, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600, dir_fd=self._fd)
        try:
            seen = os.fstat(fd)
            if not _is_file(seen) or stat.S_IMODE(seen.st_mode) & 0o077:
                raise StoreError(
                    f"{mark} holds the secret of the KV store, and others may read it: delete the "
                    "store, or give another directory"
                )
            text = os.pread(fd, _MARK_BYTES, 0) or self._mark(fd)
        finally:
            os.close(fd)
        match = _MARK_TEXT.fullmatch(text)
        if match is None:
            raise StoreError(
                f"{mark} does not mark a KV store of this version: give the KV store a new or "
                "empty directory, or delete this one"
            )
        return bytes.fromhex(match[1].decode())

    def _mark(self, fd: int) -> bytes:
        """Write the mark, or read what another process has written that began at the same time.
        One that was killed in between leaves an empty mark, alone in the directory."""
        fcntl.flock(fd, fcntl.LOCK_EX)
        text = os.pread(fd, _MARK_BYTES, 0)
        if not text:
            for name in self._list():
                if name != MARK:
                    raise self._foreign(name)
            text = _MARK_HEAD + secrets.token_hex(32).encode() + b"\n"
            if os.pwrite(fd, text, 0) < len(text):
                os.ftruncate(fd, 0)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
            os.fsync(self._fd)
        return text

    def _check_names(self) -> None:
        for name in sorted(self._list() - {MARK}):
            # What another process has renamed or deleted meanwhile is no matter.
            if not self._is_ours(name) or self._stat(name) is False:
                raise self._foreign(name)

    def _foreign(self, name: str) -> StoreError:
        hint = " (a KV store of an earlier version?)" if _FIRST_LAYOUT.fullmatch(name) else ""
        return StoreError(
            f"{self.path} holds {shown(name)}, which the KV store has not made{hint}: give it a "
            "new or an empty directory, since it deletes what is in its own"
        )

    def _delete_abandoned(self) -> None:
        """Delete what a process began to write and did not live to finish."""
        for name in self._ours(".tmp"):
            with suppress(OSError, ForeignFileError), self.opened(name) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.delete(name)

    def _ours(self, *suffixes: str) -> list[str]:
        return [n for n in self._list() if n.endswith(suffixes) and self._is_ours(n)]

    def _list(self) -> set[str]:
        with self._listing:  # a descriptor has one place in its directory
            return set(os.listdir(self._fd))

    def _is_ours(self, name: str) -> bool:
        match = _NAME.fullmatch(name)
        return match is not None and hmac.compare_digest(name, self._tagged(match[1], match[2]))

    def _tagged(self, stem: str, kind: str) -> str:
        return f"{stem}-{self.digest(stem.encode())[:8].hex()}.{kind}"

    def _stat(self, name: str) -> os.stat_result | Literal[False] | None:
        """What is known of a regular file of this user; False if there is something else, None if
        there is nothing."""
        try:
            seen = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return seen if _is_file(seen) else False


def _is_file(seen: os.stat_result) -> bool:
    return stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()


def _is_pinned(seen: os.stat_result) -> bool:
    """What is not to be written is not to be deleted either."""
    return not seen.st_mode & stat.S_IWUSR


def _uncache(fd: int) -> None:
    """KV is read once and then lives in its blocks: no need of page cache, which counts as ours."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _model(identity: bytes) -> str:
    return f"{identity.hex()[:32]}-"
