"""How keys and values are kept: one row a type. The bits of an answer depend on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.program import LayerState, PagedKV, Recurrent, StateGroup

KV_BLOCK = 64
"""Positions in a KV block; also the unit in which attention splits its keys."""

_GROUP = 32
"""Elements of one position that share a scale in q8_0."""

_GROUP4 = 64
"""The same in int4."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KVType:
    """How many bytes numbers take, and what is read back of float32 rows [..., head]: ``stored``.

    ``element`` are the bytes of a number, ``scale`` those of what each 32 numbers of a position
    share, if they do.
    """

    name: str
    element: int
    scale: int
    stored: Callable[[Floats], Floats]

    def head_nbytes(self, k_dim: int, v_dim: int, *, v_in_k: bool = False) -> int:
        """Bytes of one KV head in a block of the native layout; rows of values there are whole
        vectors of 16, and none are kept with ``v_in_k``."""
        if self.name == INT4_NAME:
            return KV_BLOCK * _int4_nbytes(k_dim, v_dim, v_in_k=v_in_k)
        numbers, scales = k_dim, -(-k_dim // _GROUP)
        if not v_in_k:
            numbers, scales = numbers + -(-v_dim // 16) * 16, scales + -(-v_dim // _GROUP)
        return KV_BLOCK * (self.element * numbers + self.scale * scales)

    def block_nbytes(self, state: Sequence[LayerState], group: StateGroup) -> int:
        """Bytes of one block of a group of a model's layers, or of one slot if it is recurrent."""
        return sum(self.layer_nbytes(state[number]) for number in group.layers)

    def layer_nbytes(self, layer: LayerState) -> int:
        """Bytes of a layer's part of a block."""
        if isinstance(layer, PagedKV):
            head = self.head_nbytes(layer.k_dim, layer.v_dim, v_in_k=layer.v_in_k)
            return layer.kv_heads * head
        return -(-4 * layer.elements // 64) * 64 if isinstance(layer, Recurrent) else 0


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


def _rotated(x: Floats) -> Floats:
    """Times Hadamard matrices of the largest power of two that divides the head, 128 at most."""
    block = 1
    while block < 128 and x.shape[-1] % (2 * block) == 0:
        block *= 2
    out = x.astype(np.float32).reshape(*x.shape[:-1], -1, block)
    half = 1
    while half < block:
        pairs = out.reshape(*out.shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        out = np.stack([first + second, first - second], axis=-2).reshape(out.shape)
        half *= 2
    if block > 1:
        out = out * (np.float32(1) / np.sqrt(np.float32(block)))
    return out.reshape(x.shape)


def _int4_nbytes(k_dim: int, v_dim: int, *, v_in_k: bool) -> int:
    """Bytes of a position of a head: codes, and of each 64 a scale and a least value."""
    keys = -(-k_dim // 2) + 4 * -(-k_dim // _GROUP4)
    return keys if v_in_k else keys + -(-v_dim // 32) * 16 + 4 * -(-v_dim // _GROUP4)


def as_int4(x: Floats) -> Floats:
    """Codes of four bits between the least and the largest of each 64 numbers, as they are read."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], _GROUP4):
        part = np.clip(x[..., start : start + _GROUP4], -65504, 65504)
        least = part.min(axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        step = (part.max(axis=-1, keepdims=True) - least) / np.float32(15)
        step = step.astype(np.float16).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            code = np.rint(np.clip((part - least) / step, 0, 15))
        out[..., start : start + _GROUP4] = np.where(step > 0, code * step, 0) + least
    return out


def _as_int4(x: Floats) -> Floats:
    return _rotated(as_int4(_rotated(x)))


F32 = KVType("f32", 4, 0, lambda x: x)
F16 = KVType("f16", 2, 0, _as_f16)
BF16 = KVType("bf16", 2, 0, _as_bf16)
Q8_0 = KVType("q8_0", 1, 2, _as_q8_0)
INT4_NAME = "int4"
INT4 = KVType(INT4_NAME, 0, 0, _as_int4)
"""Of heads that were rotated, so that no number is far larger than others (SAW-INT4, arXiv
2604.19157); the head is turned back when it is read."""

KV_TYPES: tuple[KVType, ...] = (F16, BF16, Q8_0, INT4)
"""Those that every backend has, as csrc/kernels/step_kernels.h numbers them."""


def choose_kv_type(name: str | None, types: tuple[KVType, ...]) -> KVType:
    """The one of ``types`` that is asked for, the first of them for None; UsageError if none."""
    for found in types:
        if name in (None, found.name):
            return found
    known = ", ".join(t.name for t in types)
    raise UsageError(f"there is no KV type {name!r} here; there are: {known}")
