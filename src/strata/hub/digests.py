"""Digests of large files, remembered in Strata's cache from one start to the next."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

from strata.formats.disk_file import DiskFile
from strata.hub.downloads import strata_home

_SETTLED_NS = 2_000_000_000
"""File systems tell times in steps of up to 2 s: a file that was written in the step in which it is
read may be written again without its times telling."""

_SAMPLES = 64
_SAMPLE_BYTES = 4096


class FileDigests:
    """Remembers digests by device, inode, size and the times of the last change, of which the
    system sets one and nobody else can. Samples spread over the file have to agree as well: times
    may come from another machine's clock, or from a snapshot."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = strata_home() / "digests" if directory is None else directory

    def recall(self, file: DiskFile) -> bytes | None:
        """See DigestMemory."""
        try:
            fd = os.open(self._path(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, encoding="utf-8") as f:
                seen = os.fstat(fd)
                ours = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()
                if not ours or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    return None
                data = json.loads(f.read(4096))
            if data["file"] != list(astuple(file.identity)) or data["samples"] != _samples(file):
                return None
            digest = bytes.fromhex(data["digest"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return digest if len(digest) == 32 and file.unchanged() else None

    def keep(self, file: DiskFile, digest: bytes, started_ns: int) -> None:
        """See DigestMemory."""
        changed = max(file.identity.mtime_ns, file.identity.ctime_ns)
        if changed + _SETTLED_NS > started_ns or not file.unchanged():
            return
        data = {
            "file": astuple(file.identity),
            "samples": _samples(file),
            "digest": digest.hex(),
        }
        # Where nothing can be kept, each start reads the file: slow, still right.
        with suppress(OSError):
            path = self._path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{secrets.token_hex(8)}")
            try:
                fd = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                with open(fd, "w", encoding="utf-8") as f:
                    json.dump(data, f)
                os.replace(scratch, path)
            except OSError:
                scratch.unlink(missing_ok=True)

    def _path(self, file: DiskFile) -> Path:
        return self._directory / f"{file.identity.device:x}-{file.identity.inode:x}.json"


def _samples(file: DiskFile) -> str:
    digest = hashlib.sha256()
    nbytes = min(_SAMPLE_BYTES, file.size)
    for number in range(_SAMPLES):
        digest.update(file.read((file.size - nbytes) * number // (_SAMPLES - 1), nbytes))
    return digest.hexdigest()
