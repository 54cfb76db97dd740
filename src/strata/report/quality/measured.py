"""What `strata quality` measured of a model's quantisations: kept, so that plans can say it.

A model is told by what each of its quantisations keeps, so that a measurement of some files is
found from any of them. What is kept says which quantisation is recommended, never what an answer
is; what is not as it was written is not used.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from strata.formats import ModelFile
from strata.formats.header_only import HeaderOnly
from strata.hub.downloads import strata_home
from strata.quant import dequantize
from strata.records import dataclass
from strata.report.quality.known import KnownCost

FLOATS = ("F32", "F16", "BF16", "F64")
_VECTORS, _LONGEST = 16, 1 << 16
_MOST_BYTES = 1 << 20
_MOST_MODELS = 64
_MOST_FILES = 256
# A file with an importance matrix has some types that one without it has not.
_SAME_SIZE = 0.01


@dataclass(frozen=True)
class MeasuredFile:
    """A quantisation: the bytes of its tensors, the block type of most of its weights, and what it
    lost against the floats: the mean KL divergence in nats a token, and the share of tokens of
    which the likeliest stayed the same."""

    name: str
    nbytes: int
    type: str
    kl: float
    same_top: float


@dataclass(frozen=True)
class MeasuredQuality:
    """Of one model: the text's name, a digest of its tokens, windows and their length, and the
    files that were measured on it."""

    text: str
    tokens: str
    windows: int
    context: int
    files: tuple[MeasuredFile, ...]

    def cost(self, nbytes: int, type: str) -> KnownCost | None:
        """Of the measured file that is most like one of so many bytes; None where none is."""
        near = [
            f for f in self.files if f.type == type and abs(f.nbytes / nbytes - 1) <= _SAME_SIZE
        ]
        if not near:
            return None
        found = min(near, key=lambda f: abs(f.nbytes - nbytes))
        return KnownCost(found.kl, found.same_top, type)


def most_of(file: ModelFile) -> str:
    """The block type of most of the weights."""
    counts: dict[str, int] = {}
    for info in file.tensors.values():
        counts[info.type.name] = counts.get(info.type.name, 0) + prod(info.shape)
    return max(counts, key=lambda name: counts[name])


def lineage(file: ModelFile) -> str | None:
    """Tells a GGUF model from others, and is the same for all its quantisations: names and shapes
    of its tensors, and its first vectors, which none of them rounds. None where only the header is
    here, or where these vectors tell nothing."""
    if isinstance(file, HeaderOnly):
        return None
    names = sorted(file.tensors)
    digest = sha256(repr([(n, file.tensors[n].shape) for n in names]).encode())
    vectors = [
        i
        for i in map(file.tensors.__getitem__, names)
        if len(i.shape) == 1 and 1 < i.shape[0] <= _LONGEST and i.type.name in FLOATS
    ]
    tells = False
    for info in vectors[:_VECTORS]:
        values = dequantize(info.type, file.read(info.name), info.shape)
        tells = tells or bool((values != values[0]).any())
        digest.update(np.ascontiguousarray(values, np.float32).tobytes())
    return digest.hexdigest() if tells else None


def recall(model: str) -> MeasuredQuality | None:
    """What is known of a model by its ``lineage``."""
    try:
        fd = os.open(_path(model), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, encoding="utf-8") as file:
            seen = os.fstat(fd)
            ours = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()
            if not ours or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            if seen.st_size > _MOST_BYTES:
                return None
            said = json.loads(file.read(_MOST_BYTES))
        files = tuple(
            MeasuredFile(
                str(f["name"]), int(f["nbytes"]), str(f["type"]), _loss(f["kl"]), _loss(f["top"])
            )
            for f in said["files"]
        )
        windows, context = int(said["windows"]), int(said["context"])
        return MeasuredQuality(str(said["text"]), str(said["tokens"]), windows, context, files)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _loss(value: object) -> float:
    number = float(value) if isinstance(value, (int, float)) else math.nan
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def remember(model: str, found: MeasuredQuality) -> None:
    """Keep it, with what was measured before on the same windows of the same text; losses on other
    ones cannot be compared and go. Where nothing can be kept, plans know nothing of it."""
    before = recall(model)
    files: Sequence[MeasuredFile] = found.files
    if before is not None and before.tokens == found.tokens:
        new = {(f.nbytes, f.type) for f in files}
        files = [*(f for f in before.files if (f.nbytes, f.type) not in new), *files]
    of = asdict(found) | {
        "files": [
            {"name": f.name, "nbytes": f.nbytes, "type": f.type, "kl": f.kl, "top": f.same_top}
            for f in files[-_MOST_FILES:]
        ]
    }
    with suppress(OSError):
        target = _path(model)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = target.with_suffix(f".{secrets.token_hex(8)}")
        try:
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="utf-8") as out:
                json.dump(of, out)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        there = sorted(target.parent.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in there[_MOST_MODELS:]:
            old.unlink(missing_ok=True)


def _path(model: str) -> Path:
    return strata_home() / "quality" / f"{model}.json"
