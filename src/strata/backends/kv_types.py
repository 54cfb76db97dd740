"""How keys and values are kept: one row a type. The bits of an answer depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.program import KVLayer

KV_BLOCK = 64
"""Positions in a KV block; also the unit in which attention splits its keys."""

_GROUP = 32
"""Elements of one position that share a scale in q8_0."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KVType:
    """``head_nbytes(head_dim)`` is what one KV head takes in a block of the native layout;
    ``stored`` gives what is read back of float32 rows [..., head_dim]."""

    name: str
    head_nbytes: Callable[[int], int]
    stored: Callable[[Floats], Floats]

    def block_nbytes(self, layers: Iterable[KVLayer]) -> int:
        """Bytes of one block, all layers."""
        return sum(layer.kv_heads * self.head_nbytes(layer.head_dim) for layer in layers)


def _elements(head_dim: int) -> int:
    """Of keys and values; the rows of values are whole vectors of 16."""
    return KV_BLOCK * (head_dim + -(-head_dim // 16) * 16)


def _as_f16(x: Floats) -> Floats:
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def _as_bf16(x: Floats) -> Floats:
    most = np.uint32(0x7F7F0000).view(np.float32)
    bits = np.clip(x, -most, most).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    out: Floats = rounded.view(np.float32)
    return out


def _as_q8_0(x: Floats) -> Floats:
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], _GROUP):
        part = np.clip(x[..., start : start + _GROUP], -65504 * 127, 65504 * 127)
        largest = np.abs(part).max(axis=-1, keepdims=True)
        scale = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.rint(np.clip(part / scale, -127, 127))
        out[..., start : start + _GROUP] = np.where(scale > 0, quotient * scale, 0)
    return out


def _q8_0_nbytes(head_dim: int) -> int:
    return _elements(head_dim) + 2 * 2 * KV_BLOCK * -(-head_dim // _GROUP)


F32 = KVType("f32", lambda dim: 4 * _elements(dim), lambda x: x)
F16 = KVType("f16", lambda dim: 2 * _elements(dim), _as_f16)
BF16 = KVType("bf16", lambda dim: 2 * _elements(dim), _as_bf16)
Q8_0 = KVType("q8_0", _q8_0_nbytes, _as_q8_0)


def choose_kv_type(name: str | None, types: tuple[KVType, ...]) -> KVType:
    """The one of ``types`` that is asked for, the first of them for None; UsageError if none."""
    for found in types:
        if name in (None, found.name):
            return found
    known = ", ".join(t.name for t in types)
    raise UsageError(f"there is no KV type {name!r} here; there are: {known}")
