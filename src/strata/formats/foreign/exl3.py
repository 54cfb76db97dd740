"""EXL3: trellis codes of tiles of 16 by 16, between Hadamard matrices of 128 on both sides.

``trellis`` [k / 16, n / 16, 16 * bits] (16-bit words, two of which make one of 32 bits, highest bit
first) has the bits of a tile, a ring: number t is a function of the 16 bits that end with its own.
``suh`` [k] and ``svh`` [n] are signs and scales of inputs and outputs (``su`` and ``sv`` in older
files: bits, set where the sign is minus). A weight is ``suh * (H W H) * svh``. The function is one
of three: a hash of which two halves are added up, with the multiplier that ``mcg`` has, or without
it one of multiplication and addition; with ``mul1`` the sum of a hash's four bytes. Source: the
quantiser and the kernels of the exllamav3 project; their weights are float16, which is the nearest
one to the exact product here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign.weight import Arrays, ForeignWeight, ReadSmall, check, part, presented
from strata.formats.tensor_info import TensorInfo
from strata.quant.block_type import Raw

_TILE, _TURN = 16, 128
_MCG, _MUL1 = 0xCBAC1FED, 0x83DCD12D
_PLAIN, _PLAIN_ADDED = 89226354, 64248484
_MASK, _FLIP = 0x8FFF8FFF, 0x3B603B60
# 1024 as a half, to which bytes are added in its last bits, and how their sum becomes a number.
_THOUSAND, _BY, _LESS = 0x6400, 0x1EEE, 0xC931

Matrix = NDArray[np.float64]


def find(
    stored: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: ReadSmall | None
) -> list[ForeignWeight]:
    """Weights of an EXL3 checkpoint."""
    del settings, read
    ending = ".trellis"
    return [_weight(stored, n.removesuffix(ending)) for n in stored if n.endswith(ending)]


def _weight(stored: Mapping[str, TensorInfo], prefix: str) -> ForeignWeight:
    trellis = check(stored[f"{prefix}.trellis"], ("I16",))
    if len(trellis.shape) != 3:
        raise ForeignFormatError(f"tensor {shown(trellis.name)} has not three axes")
    k, n, bits = trellis.shape[0] * _TILE, trellis.shape[1] * _TILE, trellis.shape[2] / _TILE
    if bits not in range(1, 9):
        raise ForeignFormatError(
            f"tensor {shown(trellis.name)} has {bits} bits a weight, which is no whole number "
            "from 1 to 8"
        )
    if not k or not n or k % _TURN or n % _TURN:
        raise ForeignFormatError(f"tensor {shown(prefix)} of {n} x {k} is not of whole {_TURN}")
    parts = {"trellis": trellis}
    for side, size in (("su", k), ("sv", n)):
        packed = f"{prefix}.{side}"
        if packed in stored:
            parts[side] = check(stored[packed], ("I16",), (size // 16,))
        else:
            parts[side] = check(part(stored, f"{packed}h"), ("F16",), (size,))
    named = [name for name in ("mcg", "mul1") if f"{prefix}.{name}" in stored]
    if len(named) > 1:
        raise ForeignFormatError(f"tensor {shown(prefix)} has two codebooks, mcg and mul1")
    if named:
        factor = check(stored[f"{prefix}.{named[0]}"], ("I32", "U32"))
        if factor.nbytes != 4:
            raise ForeignFormatError(f"tensor {shown(factor.name)} is not one number")
    codebook = named[0] if named else "plain"
    both = tuple(f"{prefix}.{s}h" for s in ("su", "sv") if f"{prefix}.{s}" in stored)
    unused = tuple(f"{prefix}.{name}" for name in named) + tuple(x for x in both if x in stored)

    def rows(arrays: Arrays, first: int, last: int) -> Raw:
        left, right = (_scales(arrays[side]) for side in ("su", "sv"))
        begin = first // _TURN * _TURN
        made = []
        for at in range(begin, last, _TURN):
            tiles = arrays["trellis"][:, at // _TILE : (at + _TURN) // _TILE]
            weights = _turned(_numbers(tiles, int(bits), codebook))
            weights = weights * left[:, None] * right[at : at + _TURN]
            with np.errstate(over="ignore"):
                made.append(weights.T.astype("<f2"))
        whole = np.concatenate(made)[first - begin : last - begin]
        return np.ascontiguousarray(whole).view(np.uint8)

    info = presented(f"{prefix}.weight", (n, k), "F16", trellis)
    return ForeignWeight(info, parts, rows, unused, _TURN)


def _scales(stored: NDArray[Any]) -> Matrix:
    """Numbers, or signs from bits, the lowest first."""
    if stored.dtype.kind == "f":
        return stored.astype(np.float64)
    bits = np.unpackbits(np.ascontiguousarray(stored).view(np.uint8), bitorder="little")
    return 1 - 2 * bits.astype(np.float64)


def _numbers(tiles: NDArray[np.int16], bits: int, codebook: str) -> Matrix:
    """The numbers [k, 128] of tiles [k / 16, 8, 16 * bits]."""
    words = np.ascontiguousarray(tiles).view("<u4").astype(">u4").view(np.uint8)
    fields = np.unpackbits(words, axis=2).reshape(*tiles.shape[:2], 256, bits)
    symbols = (fields * (1 << np.arange(bits - 1, -1, -1))).sum(axis=3)
    states = np.zeros(symbols.shape, np.int64)
    for back in range(-(-16 // bits)):
        states |= np.roll(symbols, back, axis=2) << (back * bits)
    values = np.empty(states.shape)
    values[..., _places()] = _codebook(codebook)[states & 0xFFFF]
    count, across = tiles.shape[:2]
    within = values.reshape(count, across, _TILE, _TILE).transpose(0, 2, 1, 3)
    found: Matrix = within.reshape(count * _TILE, across * _TILE)
    return found


@cache
def _places() -> NDArray[np.intp]:
    """Where in a tile, row after row, the numbers of its stream belong: as the operands of tensor
    cores lie in threads, of which each of 32 has eight."""
    thread = np.arange(32)
    rows = (thread % 4 * 2)[:, None] + [0, 1, 8, 9]
    column = (thread // 4)[:, None]
    found = np.concatenate([rows * _TILE + column, rows * _TILE + column + 8], axis=1)
    return found.reshape(-1).astype(np.intp)


@cache
def _codebook(name: str) -> Matrix:
    """What each of 65536 states stands for; every step rounds to a half, as there."""
    states = np.arange(1 << 16, dtype=np.uint64)
    factor = {"mcg": _MCG, "mul1": _MUL1, "plain": _PLAIN}[name]
    added = _PLAIN_ADDED if name == "plain" else 0
    hashed = ((states * np.uint64(factor) + np.uint64(added)) & np.uint64(0xFFFFFFFF)).astype("<u4")
    found: Matrix
    if name != "mul1":
        halves = ((hashed & np.uint32(_MASK)) ^ np.uint32(_FLIP)).view("<f2").reshape(-1, 2)
        found = (halves[:, 0] + halves[:, 1]).astype(np.float64)
        return found
    sums = hashed.view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.uint16)
    near = (sums + np.uint16(_THOUSAND)).view("<f2").astype(np.float64)
    by, less = np.array([_BY, _LESS], np.uint16).view("<f2").astype(np.float64)
    found = (near * by + less).astype(np.float16).astype(np.float64)
    return found


def _turned(weights: Matrix) -> Matrix:
    """Hadamard matrices of 128 on both sides of [k, 128]. Sums of halves are exact in float64, in
    any order, and the two roots together are a power of two."""
    turn = _hadamard()
    left = np.matmul(turn, weights.reshape(-1, _TURN, _TURN))
    found: Matrix = np.matmul(left, turn).reshape(weights.shape) / _TURN
    return found


@cache
def _hadamard() -> Matrix:
    """Of 1 and -1, [128, 128], symmetric."""
    found = np.ones((1, 1))
    while len(found) < _TURN:
        found = np.block([[found, found], [found, -found]])
    return found
