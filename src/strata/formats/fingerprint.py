"""Telling models apart by what is in their files: every byte counts."""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Protocol

from strata.formats.disk_file import DiskFile
from strata.formats.model_file import ModelFile

PIECE_BYTES = 16 << 20
"""Digests of pieces are made apart from each other, so that threads can share the work."""

_READ_BYTES = 1 << 20
_MOST_THREADS = 8
_BESIDE = (
    "config.json",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "vocab.json", "merges.txt"),
)
"""What says, beside the weights, what is computed and what a token stands for."""

Progress = Callable[[str, int, int | None], None]


class DigestMemory(Protocol):
    """Remembers the digests of files, as long as it can tell that they did not change."""

    def recall(self, file: DiskFile) -> bytes | None:
        """What was kept for exactly this file, None if there is nothing."""

    def keep(self, file: DiskFile, digest: bytes, started_ns: int) -> None:
        """Keep what was made of the file's bytes from ``started_ns`` (``time.time_ns``) on."""


class NoMemory:
    """Remembers nothing."""

    def recall(self, file: DiskFile) -> None:
        """See DigestMemory."""

    def keep(self, file: DiskFile, digest: bytes, started_ns: int) -> None:
        """See DigestMemory."""


def fingerprint(
    file: ModelFile,
    memory: DigestMemory | None = None,
    progress: Progress | None = None,
    *,
    drop_cached: bool = False,
) -> str:
    """A digest of every byte of a model's files: its weights, with their headers, and what lies
    beside them in a Hugging Face directory.

    Neither names nor dates count, so a copy is the same model. What ``memory`` knows is not read
    again. ``drop_cached`` leaves no page cache behind. Takes 1 MiB for each of up to 8 threads.
    Raises ShortReadError or FileUnreadableError.
    """
    memory = NoMemory() if memory is None else memory
    whole = hashlib.sha256()
    if file.kind == "huggingface":
        whole.update(repr(sorted(file.metadata.items())).encode())
    with ExitStack() as opened:
        files = [("", f) for f in file.files]
        for name in _BESIDE:
            path = file.sidecar(name)
            if path is not None:
                files.append((name, DiskFile(path)))
                opened.callback(files[-1][1].close)
        unknown: dict[int, DiskFile] = {}
        digests: dict[int, bytes] = {}
        for number, (_, f) in enumerate(files):
            known = memory.recall(f)
            if known is None:
                unknown[number] = f
            else:
                digests[number] = known
        started = time.time_ns()
        digests |= _content_digests(unknown, progress, drop_cached)
        for number, f in unknown.items():
            memory.keep(f, digests[number], started)
    for number, (name, _) in enumerate(files):
        whole.update(f"{name}\0".encode() + digests[number])
    return whole.hexdigest()


def _content_digests(
    files: Mapping[int, DiskFile], progress: Progress | None, drop_cached: bool
) -> dict[int, bytes]:
    """A digest of the bytes of each of ``files``: of its size and of its pieces' digests."""
    pieces = [
        (number, start)
        for number, file in files.items()
        for start in range(0, file.size, PIECE_BYTES)
    ]
    digests = {n: hashlib.sha256(f.size.to_bytes(8, "little")) for n, f in files.items()}
    total = sum(file.size for file in files.values())
    done = 0
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        made = pool.map(lambda p: _piece_digest(files[p[0]], p[1], drop_cached), pieces)
        for (number, start), digest in zip(pieces, made, strict=True):
            digests[number].update(digest)
            done += min(PIECE_BYTES, files[number].size - start)
            if progress is not None:
                progress("every byte of the model, once, for --kv-store", done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    return {number: digest.digest() for number, digest in digests.items()}


def _piece_digest(file: DiskFile, start: int, drop_cached: bool) -> bytes:
    digest = hashlib.sha256()
    end = min(start + PIECE_BYTES, file.size)
    # Memory that is surely given back.
    with mmap.mmap(-1, _READ_BYTES) as buffer, memoryview(buffer) as view:
        for offset in range(start, end, _READ_BYTES):
            with view[: min(_READ_BYTES, end - offset)] as part:
                file.readinto(offset, part)
                digest.update(part)
                if drop_cached:
                    file.forget_cached(offset, len(part))
    return digest.digest()
