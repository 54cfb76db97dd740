"""What of this machine the native kernels use: instruction sets; and which they are."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

import strata._native as _native
from strata.errors import UsageError


def available_isas() -> tuple[str, ...]:
    """Instruction sets that have kernels and run here, the best first."""
    return tuple(_native.available_isas())


def choose_isa(name: str | None = None) -> str:
    """The instruction set asked for (argument, else STRATA_ISA), or the best one here."""
    wanted = name or os.environ.get("STRATA_ISA", "").strip().lower()
    if not wanted:
        return available_isas()[0]
    if wanted not in available_isas():
        raise UsageError(
            f"STRATA_ISA: no kernels for '{wanted}' here; available: {', '.join(available_isas())}"
        )
    return wanted


@lru_cache(maxsize=1)
def kernels_digest() -> str:
    """Of the extension module's bytes: other kernels may add in another order."""
    path = _native.__file__
    assert path is not None
    with open(path, "rb") as module:
        return hashlib.blake2b(module.read(), digest_size=16).hexdigest()
