"""Experts that were used most when a model ran last: a cache begins with them.

What is kept says which experts are read first, never what an answer is: of another file it is not
found, and what is not as it was written is not used.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from strata.engine.routes import file_key
from strata.hub.downloads import strata_home

_MOST_BYTES = 16 << 20
_MOST_FILES = 64
_MOST_SCORE = 1e9
_LEAST_SHARE = 1e-3
"""Of the largest score, what is worth a line."""


def hot_file(path: Path) -> Path:
    """Where those of the model file at ``path`` are kept: another one once the file has changed."""
    return strata_home() / "experts" / f"{file_key(path)}.json"


def recall(path: Path, experts: Sequence[int]) -> list[float] | None:
    """What uses of each expert were worth, of ``experts`` in each layer, one layer after the other;
    None where nothing is known, or it is not of this shape."""
    try:
        fd = os.open(hot_file(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, encoding="utf-8") as file:
            seen = os.fstat(fd)
            ours = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()
            if not ours or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            if seen.st_size > _MOST_BYTES:
                return None
            data = json.loads(file.read(_MOST_BYTES))
        if data["experts"] != list(experts):
            return None
        scores = [0.0] * sum(experts)
        for expert, score in data["scores"]:
            if type(expert) is not int or not 0 <= expert < len(scores):
                return None
            if not 0 < (worth := float(score)) <= _MOST_SCORE or not math.isfinite(worth):
                return None
            scores[expert] = worth
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return scores


def keep(path: Path, experts: Sequence[int], scores: Sequence[float]) -> None:
    """Write down what uses were worth; where nothing can be kept, the next start is a cold one."""
    most = max(scores, default=0.0)
    if not most > 0:
        return
    pairs = [[i, float(f"{s:.5g}")] for i, s in enumerate(scores) if s > _LEAST_SHARE * most]
    with suppress(OSError):
        target = hot_file(path)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = target.with_suffix(f".{secrets.token_hex(8)}")
        try:
            fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                json.dump({"experts": list(experts), "scores": pairs}, file)
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
        there = sorted(target.parent.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in there[_MOST_FILES:]:
            old.unlink(missing_ok=True)
