"""Files that clients upload, and those made of them, in a folder of their own, within a bound.

The folder belongs to one server at a time, which holds ``lock``::

    file-<24 hex>         the content        file-<24 hex>.json     what it is; last written
    batch_<24 hex>.json   a batch            batch_<24 hex>.work    its answers so far
    *.part                what is being written; deleted when the folder is opened

Names are drawn here and never a client's. All methods may be called in any thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, BinaryIO, Literal

from strata.server.errors import ApiError
from strata.sizes import format_size

MOST_FILES = 4096
"""Entries of the folder: files, batches and what belongs to them."""

What = Literal["file", "batch"]

_ID = re.compile(r"(?:file-|batch_)[0-9a-f]{24}")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_INFO_BYTES = 128 << 10
"""Of what a file or a batch is, the longest metadata included."""

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""What a batch is until it has ended."""

_FORGOTTEN = 64
"""Batches that are forgotten at once."""


@contextmanager
def _told() -> Iterator[None]:
    """What the system says of the folder is an error that a client is told."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ApiError(503, f"files are not kept here: {reason} (--files)") from None


def _writer(path: Path, flags: int) -> BinaryIO:
    """A file that nobody else may read."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


class FileStore:
    """The folder at ``path``, made when it is first used, of ``most_bytes`` at most."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self._held = threading.RLock()
        self._lock: BinaryIO | None = None
        self._used = 0

    def open(self) -> None:
        """Make the folder this server's; ApiError where it cannot be."""
        with self._held, _told():
            if self._lock is not None:
                return
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = self.path.stat()
            if seen.st_uid != os.geteuid() or seen.st_mode & _OTHERS:
                raise ApiError(
                    503, "files are not kept: others may write where they would be (--files)"
                )
            lock = _writer(self.path / "lock", 0)
            try:
                self._begin(lock)
            except BaseException:
                lock.close()
                raise
            self._lock = lock

    def _begin(self, lock: BinaryIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ApiError(
                503, "another server of this machine keeps files in the same folder (--files)"
            ) from None
        for name in os.listdir(self.path):
            alone = name.startswith("file-") and not (self.path / f"{name}.json").exists()
            if name.endswith(".part") or (alone and _ID.fullmatch(name)):
                (self.path / name).unlink()
        # By number, because a file may have two names.
        found = (entry.stat() for entry in os.scandir(self.path))
        self._used = sum({seen.st_ino: seen.st_size for seen in found}.values())

    def close(self) -> None:
        """Leave the folder to others."""
        with self._held:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def take(self, nbytes: int) -> None:
        """Count bytes that are about to be written; ApiError 413 where there is no room."""
        with self._held:
            if self._used + nbytes > self.most_bytes:
                raise ApiError(
                    413,
                    f"all files together may take {format_size(self.most_bytes)}: delete some, or "
                    "start the server with a larger --files-size",
                    code="no_room_for_files",
                )
            self._used += nbytes

    def give(self, nbytes: int) -> None:
        """Bytes that are no longer there."""
        with self._held:
            self._used -= nbytes

    def make_place(self) -> None:
        """Room for one more name, for which batches that ended long ago are forgotten: no client
        can delete these. ApiError 413 where there are none."""
        self.open()
        with _told():
            if len(os.listdir(self.path)) < MOST_FILES:
                return
            ended = self.ids("batch", lambda batch: batch["status"] not in UNFINISHED)
            if not ended:
                raise ApiError(
                    413, f"there are {MOST_FILES} files and batches already: delete some"
                )
            for id in ended[-_FORGOTTEN:]:
                self._unlink(f"{id}.json")

    # Files. ---------------------------------------------------------------------------------------

    @contextmanager
    def new(self, purpose: str, id: str | None = None) -> Iterator[NewFile]:
        """A file to write; it is there once ``finish`` was called, and else nothing is left."""
        self.open()
        made = NewFile(self, id or f"file-{secrets.token_hex(12)}", purpose)
        try:
            yield made
        finally:
            made.close()

    def link(self, work: Path, id: str, filename: str) -> None:
        """Make answers a file of that ``id``, which takes nothing on the disk."""
        with _told():
            os.link(work, self.path / id)
        self.tell(id, work.stat().st_size, filename, "batch_output", ours=True)

    def tell(
        self, id: str, size: int, filename: str, purpose: str, *, ours: bool
    ) -> dict[str, Any]:
        """Write down what a file is that lies there, or delete it; see ``write``."""
        info = {
            "id": id,
            "object": "file",
            "bytes": size,
            "created_at": int(time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        try:
            self.write(info, ours=ours)
        except BaseException:
            self._unlink(id)
            raise
        return info

    def file(self, id: str) -> dict[str, Any]:
        """What a file is, as OpenAI's clients read it; ApiError 404 where there is none."""
        return self._info(id, "file")

    def content(self, id: str) -> Path:
        """Where a file's content lies; ApiError 404 where there is none."""
        self.file(id)
        return self.path / id

    def delete_file(self, id: str) -> None:
        """Delete a file; ApiError 404 where there is none."""
        self.file(id)
        self._unlink(f"{id}.json")
        self._unlink(id)

    # Batches. -------------------------------------------------------------------------------------

    def batch(self, id: str) -> dict[str, Any]:
        """What is known of a batch; ApiError 404 where there is none."""
        return self._info(id, "batch")

    def work(self, id: str) -> Path:
        """Where the answers of a batch are written while it runs."""
        return self.path / f"{id}.work"

    def add_to_work(self, id: str) -> BinaryIO:
        """Write more of them."""
        return _writer(self.work(id), os.O_APPEND)

    def drop_work(self, id: str) -> None:
        """They are in files now."""
        self._unlink(f"{id}.work")

    def write(self, info: dict[str, Any], *, ours: bool = False) -> None:
        """Write down what a file or a batch is, at once or not at all; ApiError where there is no
        room, which there always is for what is ``ours`` to tell: how a batch goes on."""
        self.open()
        data = json.dumps(info).encode()
        if len(data) > _INFO_BYTES:
            raise ApiError(
                400, f"this takes {len(data)} bytes to write down: {_INFO_BYTES} at most"
            )
        path = self.path / f"{info['id']}.json"
        before = path.stat().st_size if path.exists() else 0
        if ours:
            self.give(-len(data))
        else:
            self.take(len(data))
        part = self.path / f"{info['id']}-{secrets.token_hex(4)}.json.part"
        try:
            with _told():
                with _writer(part, os.O_EXCL) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.rename(path)
        except BaseException:
            self.give(len(data))
            part.unlink(missing_ok=True)
            raise
        self.give(before)

    # Both. ----------------------------------------------------------------------------------------

    def ids(
        self, what: What, wanted: Callable[[dict[str, Any]], bool] = lambda info: True
    ) -> list[str]:
        """Those of all files, or batches, that are ``wanted``, the newest first. What is known of
        them is looked at one by one: all of it may be large."""
        self.open()
        found = []
        with _told():
            names = os.listdir(self.path)
        for name in names:
            id, _, kind = name.partition(".")
            if kind == "json" and id.startswith(what):
                with suppress(ApiError):
                    info = self._info(id, what)
                    if wanted(info):
                        found.append((info["created_at"], id))
        return [id for _, id in sorted(found, reverse=True)]

    def info_bytes(self, id: str) -> int:
        """Bytes of what is known of a file or a batch; 0 where there is none."""
        with suppress(FileNotFoundError):
            return (self.path / f"{id}.json").stat().st_size
        return 0

    def _unlink(self, name: str) -> None:
        with _told(), suppress(FileNotFoundError):
            seen = (self.path / name).stat()
            (self.path / name).unlink()
            if seen.st_nlink == 1:
                self.give(seen.st_size)

    def _info(self, id: str, what: What) -> dict[str, Any]:
        self.open()
        if _ID.fullmatch(id) and id.startswith(what):
            with _told(), suppress(FileNotFoundError, ValueError):
                with (self.path / f"{id}.json").open("rb") as file:
                    found = json.loads(file.read(_INFO_BYTES))
                if isinstance(found, dict) and found.get("id") == id:
                    return found
        raise ApiError(404, f"there is no {what} {id[:64]!r} here", param=f"{what}_id")


class NewFile:
    """A file that is being written."""

    def __init__(self, store: FileStore, id: str, purpose: str) -> None:
        self.id, self.purpose = id, purpose
        self._store = store
        self._path = store.path / f"{id}.part"
        with _told():
            self._file = _writer(self._path, os.O_TRUNC)
        self._size = 0

    def write(self, data: bytes) -> None:
        """More of it; ApiError where there is no room."""
        self._store.take(len(data))
        self._size += len(data)
        with _told():
            self._file.write(data)

    def finish(self, filename: str, *, ours: bool = False) -> dict[str, Any]:
        """It is whole: what it is."""
        with _told():
            self._file.flush()
            os.fsync(self._file.fileno())
            # Nobody reads it soon, and pages of the system count as this process's.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._path.rename(self._store.path / self.id)
        size, self._size = self._size, 0
        return self._store.tell(self.id, size, filename, self.purpose, ours=ours)

    def close(self) -> None:
        """Nothing more comes; of one that is not whole nothing is left."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._store.give(self._size)
        self._size = 0
