"""Telling models apart by what is in their files, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise

from strata.formats.model_file import ModelFile

_HEADER_BYTES = 1 << 20
_SAMPLE_BYTES = 256
_SAMPLES = 4


def fingerprint(file: ModelFile) -> str:
    """A digest of a model's content: sizes, headers, and samples of every tensor.

    Neither names nor dates count, so a copy is the same model. Files that differ in a few bytes
    alone, none of them sampled, are taken for equal; other weights never are.
    """
    digest = hashlib.sha256()
    by_path = {path: sorted(_offsets(file, path)) for path in file.paths}
    for path in file.paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            first = by_path[path][0] if by_path[path] else size
            digest.update(size.to_bytes(8, "little"))
            digest.update(os.pread(fd, min(first, _HEADER_BYTES), 0))
            for start, end in pairwise([*by_path[path], size]):
                step = max(1, (end - start) // _SAMPLES)
                for offset in range(start, end, step):
                    digest.update(os.pread(fd, _SAMPLE_BYTES, offset))
        finally:
            os.close(fd)
    if file.kind == "huggingface":
        digest.update(repr(sorted(file.metadata.items())).encode())
    return digest.hexdigest()


def _offsets(file: ModelFile, path: os.PathLike[str]) -> set[int]:
    return {info.offset for info in file.tensors.values() if info.path == path}
