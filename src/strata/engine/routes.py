"""What was recorded of a model's routes, where there is something; see ``strata routes``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from strata.hub.downloads import strata_home
from strata.plan.routes import HitCurve

_LEAST_DECAY = 0.5
POLICY = 4
"""Goes up when the policy becomes another whose hits are kept: those of former ones say nothing."""


def file_key(path: Path) -> str:
    """A name for the model file at ``path``, and another one once it has changed."""
    seen = path.resolve().stat()
    facts = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def routes_file(path: Path) -> Path:
    """Where that of the model file at ``path`` is kept: another one once the file has changed."""
    return strata_home() / "routes" / f"{file_key(path)}.json"


def known_hits(paths: Sequence[Path]) -> tuple[HitCurve, ...]:
    """The curves of a model's first file; none where nothing was recorded, or cannot be read."""
    try:
        data = json.loads(routes_file(paths[0]).read_text(encoding="utf-8"))
        if data["policy"] != POLICY:
            return ()
        return tuple(
            HitCurve(
                int(c["rows"]),
                int(c["tokens"]),
                tuple((int(n), min(1.0, max(0.0, float(rate)))) for n, rate in c["points"]),
                min(1.0, max(_LEAST_DECAY, float(c["decay"]))),
            )
            for c in data["curves"]
        )
    except (
        OSError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ):
        return ()
