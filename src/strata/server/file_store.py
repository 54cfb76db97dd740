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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any, BinaryIO

from strata.server.errors import ApiError
from strata.sizes import format_size

MOST_FILES = 4096
"""Entries of the folder: files, batches and what belongs to them."""

_ID = re.compile(r"(?:file-|batch_)[0-9a-f]{24}")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_INFO_BYTES = 64 << 10


class FileStore:
    """The folder at ``path``, made when it is first used, of ``most_bytes`` at most."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self._held = threading.RLock()
        self._lock: int | None = None
        self._used = 0

    def open(self) -> None:
        """Make the folder this server's; ApiError where it cannot be."""
        with self._held:
            if self._lock is not None:
                return
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                seen = self.path.stat()
                if seen.st_uid != os.geteuid() or seen.st_mode & _OTHERS:
                    raise ApiError(
                        503, "files are not kept: others may write where they would be (--files)"
                    )
                lock = os.open(
                    self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                )
            except OSError as error:
                reason = error.strerror or error
                raise ApiError(503, f"files are not kept here: {reason} (--files)") from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise ApiError(
                    503, "another server of this machine keeps files in the same folder (--files)"
                ) from None
            for name in os.listdir(self.path):
                alone = name.startswith("file-") and not (self.path / f"{name}.json").exists()
                if name.endswith(".part") or (alone and _ID.fullmatch(name)):
                    (self.path / name).unlink()
            self._used = sum(entry.stat().st_size for entry in os.scandir(self.path))
            self._lock = lock

    def close(self) -> None:
        """Leave the folder to others."""
        with self._held:
            if self._lock is not None:
                os.close(self._lock)
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

    # Files. ---------------------------------------------------------------------------------------

    @contextmanager
    def new(self, purpose: str, id: str | None = None) -> Iterator[NewFile]:
        """A file to write; it is there once ``finish`` was called, and else nothing is left."""
        self.open()
        if len(os.listdir(self.path)) >= MOST_FILES:
            raise ApiError(413, f"there are {MOST_FILES} files and batches already: delete some")
        made = NewFile(self, id or f"file-{secrets.token_hex(12)}", purpose)
        try:
            yield made
        finally:
            made.close()

    def file(self, id: str) -> dict[str, Any]:
        """What a file is, as OpenAI's clients read it; ApiError 404 where there is none."""
        return self._info(id, "file")

    def files(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        return self._all("file-")

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

    def batches(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        return self._all("batch_")

    def work(self, id: str) -> Path:
        """Where the answers of a batch are written while it runs."""
        return self.path / f"{id}.work"

    def drop_work(self, id: str) -> None:
        """They are in files now."""
        self._unlink(f"{id}.work")

    def write(self, info: dict[str, Any]) -> None:
        """Write down what a file or a batch is, at once or not at all."""
        self.open()
        data = json.dumps(info).encode()
        path = self.path / f"{info['id']}.json"
        before = path.stat().st_size if path.exists() else 0
        self.take(len(data))
        part = self.path / f"{info['id']}-{secrets.token_hex(4)}.json.part"
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            self.give(len(data))
            part.unlink(missing_ok=True)
            raise
        self.give(before)

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            size = (self.path / name).stat().st_size
            (self.path / name).unlink()
            self.give(size)

    def _info(self, id: str, what: str) -> dict[str, Any]:
        self.open()
        if _ID.fullmatch(id) and id.startswith(what):
            with suppress(FileNotFoundError, ValueError):
                with (self.path / f"{id}.json").open("rb") as file:
                    found = json.loads(file.read(_INFO_BYTES))
                if isinstance(found, dict) and found.get("id") == id:
                    return found
        raise ApiError(404, f"there is no {what} {id[:64]!r} here", param=f"{what}_id")

    def _all(self, prefix: str) -> list[dict[str, Any]]:
        self.open()
        found = []
        for name in os.listdir(self.path):
            id, _, kind = name.partition(".")
            if kind == "json" and id.startswith(prefix):
                with suppress(ApiError):
                    found.append(self._info(id, "file" if prefix == "file-" else "batch"))
        return sorted(found, key=lambda info: (info.get("created_at", 0), info["id"]), reverse=True)


class NewFile:
    """A file that is being written."""

    def __init__(self, store: FileStore, id: str, purpose: str) -> None:
        self.id, self.purpose = id, purpose
        self._store = store
        self._path = store.path / f"{id}.part"
        self._file: BinaryIO | None = self._path.open("wb")
        self._size = 0

    def write(self, data: bytes) -> None:
        """More of it; ApiError where there is no room."""
        assert self._file is not None
        self._store.take(len(data))
        self._size += len(data)
        self._file.write(data)

    def finish(self, filename: str) -> dict[str, Any]:
        """It is whole: what it is."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.rename(self._store.path / self.id)
        info = {
            "id": self.id,
            "object": "file",
            "bytes": self._size,
            "created_at": int(time()),
            "filename": filename,
            "purpose": self.purpose,
            "status": "processed",
        }
        self._store.write(info)
        self._size = 0
        return info

    def close(self) -> None:
        """Nothing more comes; of one that is not whole nothing is left."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)
        self._store.give(self._size)
        self._size = 0
