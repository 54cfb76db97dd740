"""How keys and values are kept: one row a codec. The bits of an answer depend on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.formats.errors import shown
from strata.program import LayerState, PagedKV, Recurrent, StateGroup
from strata.records import dataclass

KV_BLOCK = 64
"""Positions in a KV block; also the unit in which attention splits its keys."""

_GROUP = 32
"""Elements of one position that share a scale in q8_0."""

_GROUP4 = 64
"""The same in int4."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KVCodec:
    """How the numbers of a head are kept: bytes of a position's key, or value, of so many of them,
    and what is read back of float32 rows [..., head]: ``stored``. Rows of values are whole vectors
    of 16."""

    name: str
    key_nbytes: Callable[[int], int]
    value_nbytes: Callable[[int], int]
    stored: Callable[[Floats], Floats]


@dataclass(frozen=True)
class KVType:
    """The codecs of keys and of values; ``layers`` have (number, keys, values) of their own."""

    keys: KVCodec
    values: KVCodec
    layers: tuple[tuple[int, KVCodec, KVCodec], ...] = ()

    @cached_property
    def name(self) -> str:
        """As ``choose_kv_type`` reads it, one spelling for each type."""
        out, runs = [_spelled(self.keys, self.values)], list[tuple[int, int, str]]()
        for number, keys, values in self.layers:
            said = _spelled(keys, values)
            if runs and runs[-1][1:] == (number - 1, said):
                runs[-1] = (runs[-1][0], number, said)
            else:
                runs.append((number, number, said))
        for first, last, said in runs:
            out.append(f"{first}={said}" if first == last else f"{first}-{last}={said}")
        return ",".join(out)

    @cached_property
    def lossless(self) -> bool:
        """Whether nothing is kept in less than 16 bits of floating point."""
        kept = {c.name for c in (self.keys, self.values)}
        return kept.union(*({k.name, v.name} for _, k, v in self.layers)) <= {"f16", "f32"}

    def of(self, layer: int) -> tuple[KVCodec, KVCodec]:
        """Codecs of the keys and the values of a layer."""
        return self._own.get(layer, (self.keys, self.values))

    @cached_property
    def _own(self) -> dict[int, tuple[KVCodec, KVCodec]]:
        return {number: (keys, values) for number, keys, values in self.layers}

    def stored(self, x: Floats) -> Floats:
        """What is read back of keys."""
        return self.keys.stored(x)

    def head_nbytes(self, k_dim: int, v_dim: int, *, v_in_k: bool = False, layer: int = -1) -> int:
        """Bytes of one KV head in a block of the native layout; no values are kept with
        ``v_in_k``."""
        keys, values = self.of(layer)
        return KV_BLOCK * (keys.key_nbytes(k_dim) + (0 if v_in_k else values.value_nbytes(v_dim)))

    def block_nbytes(self, state: Sequence[LayerState], group: StateGroup) -> int:
        """Bytes of one block of a group of a model's layers, or of one slot if it is recurrent.
        UsageError if a layer is named that the model has not."""
        if self.layers and self.layers[-1][0] >= len(state):
            raise UsageError(
                f"the KV type {shown(self.name)} names layer {self.layers[-1][0]}, and the model's "
                f"last is {len(state) - 1}"
            )
        return sum(self.layer_nbytes(state, number) for number in group.layers)

    def layer_nbytes(self, state: Sequence[LayerState], number: int) -> int:
        """Bytes of a layer's part of a block, with the bounds of its keys where there are any."""
        layer = state[number]
        if isinstance(layer, PagedKV):
            head = self.head_nbytes(layer.k_dim, layer.v_dim, v_in_k=layer.v_in_k, layer=number)
            return layer.kv_heads * head + bounds_nbytes(layer)
        return -(-4 * layer.elements // 64) * 64 if isinstance(layer, Recurrent) else 0


def bounds_nbytes(layer: LayerState) -> int:
    """Bytes of the bounds of a block's keys, which are in memory wherever the block is: of each
    dimension the least and the greatest number as f16, in whole vectors of 16."""
    if not isinstance(layer, PagedKV) or not layer.read:
        return 0
    return layer.kv_heads * 4 * (-(-layer.k_dim // 16) * 16)


def _spelled(keys: KVCodec, values: KVCodec) -> str:
    return keys.name if keys == values else f"{keys.name}:{values.name}"


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


def _whole(dim: int) -> int:
    """Numbers of a row of values: whole vectors."""
    return -(-dim // 16) * 16


def _plain(name: str, element: int, stored: Callable[[Floats], Floats]) -> KVType:
    codec = KVCodec(name, lambda n: element * n, lambda n: element * _whole(n), stored)
    return KVType(codec, codec)


F32 = _plain("f32", 4, lambda x: x)
F16 = _plain("f16", 2, _as_f16)
BF16 = _plain("bf16", 2, _as_bf16)
_Q8 = KVCodec(
    "q8_0", lambda n: n + 2 * -(-n // _GROUP), lambda n: _whole(n) + 2 * -(-n // _GROUP), _as_q8_0
)
Q8_0 = KVType(_Q8, _Q8)
_INT4 = KVCodec(
    "int4",
    lambda n: -(-n // 8) * 4 + 4 * -(-n // _GROUP4),
    lambda n: -(-n // 32) * 16 + 4 * -(-n // _GROUP4),
    _as_int4,
)
INT4 = KVType(_INT4, _INT4)
"""Of heads that were rotated, so that no number is far larger than others (SAW-INT4, arXiv
2604.19157); the head is turned back when it is read."""

KV_TYPES: tuple[KVType, ...] = (F16, BF16, Q8_0, INT4)
"""Those that every backend has, as csrc/kernels/step_kernels.h numbers them."""

_MOST_LAYERS = 4096
_LAYERS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def choose_kv_type(name: str | None, types: tuple[KVType, ...]) -> KVType:
    """The type of that name, made of the codecs of ``types``; the first of them for None.

    ``q8_0`` is keys and values alike, ``q8_0:int4`` keys and values apart, and
    ``q8_0:int4,0-1=f16,29=q8_0`` has layers of their own. UsageError for what there is not.
    """
    if name is None:
        return types[0]
    codecs = {t.keys.name: t.keys for t in types}
    first, *more = name.split(",")
    keys, values = _pair(first, name, codecs)
    if len(more) > _MOST_LAYERS:
        raise UsageError(f"the KV type {shown(name)} has more than {_MOST_LAYERS} parts")
    own: dict[int, tuple[KVCodec, KVCodec]] = {}
    for part in more:
        numbers, equals, kept = part.partition("=")
        match = _LAYERS.fullmatch(numbers.strip())
        begin, end = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not equals or not begin <= end < _MOST_LAYERS:
            raise UsageError(
                f"the KV type {shown(name)} has {shown(part)} where layers are said as "
                "0-3=f16 or 5=q8_0:int4"
            )
        own.update(dict.fromkeys(range(begin, end + 1), _pair(kept, name, codecs)))
    layers = tuple((n, *pair) for n, pair in sorted(own.items()) if pair != (keys, values))
    return KVType(keys, values, layers)


def _pair(text: str, name: str, codecs: dict[str, KVCodec]) -> tuple[KVCodec, KVCodec]:
    keys, colon, values = (part.strip() for part in text.partition(":"))
    for found in (keys, values) if colon else (keys,):
        if found not in codecs:
            raise UsageError(
                f"there is no KV type {shown(found)} here; there are: {', '.join(codecs)}, "
                "and keys and values apart as q8_0:int4"
            )
    return codecs[keys], codecs[values if colon else keys]
