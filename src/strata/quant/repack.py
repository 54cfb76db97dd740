"""Whole-number codes under scales, as others keep them, in block types that the kernels know.

What is packed is exact: a value is scale * code, and the block type holds both as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.bits import pack
from strata.quant.block_type import QuantError, Raw

Codes = NDArray[np.int16]
Scales = NDArray[np.float32]

BLOCK = 32

# Lowest and highest code of each type, and what is added to it.
_RANGES = {"Q4_0": (-8, 7, 8), "Q5_0": (-16, 15, 16), "Q8_0": (-128, 127, 0)}


def narrowest(bits: int, *, zeros: bool) -> str | None:
    """The type with the fewest bits that holds codes of so many bits less half their range, or
    less any zero point among them; None for more than 8 bits."""
    top = (1 << bits) - 1
    low, high = (-top, top) if zeros else (-(top + 1) // 2, top // 2)
    fitting = (t for t, (least, most, _) in _RANGES.items() if least <= low and high <= most)
    return next(fitting, None)


def pack_codes(type: str, codes: Codes, scales: Scales) -> Raw:
    """Codes [rows, k] under scales [rows, groups], of k / groups codes each, a multiple of 32, as
    bytes [rows, k / 32 * nbytes] of Q4_0, Q5_0 or Q8_0. QuantError for a code that the type does
    not have and a scale that float16 does not hold."""
    low, high, shift = _RANGES[type]
    if codes.size and (codes.min() < low or codes.max() > high):
        raise QuantError(f"codes go from {codes.min()} to {codes.max()}, beyond what {type} holds")
    rows, k = codes.shape
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scales):
        raise QuantError("a scale is no float16, in which blocks keep theirs")
    each = np.repeat(halves, k // BLOCK // scales.shape[1], axis=1)
    d = np.ascontiguousarray(each.reshape(-1, 1), "<f2").view(np.uint8)
    q = (codes + np.int16(shift)).reshape(-1, BLOCK)
    if type == "Q8_0":
        parts = [d, q.astype(np.int8).view(np.uint8)]
    elif type == "Q4_0":
        parts = [d, pack(q, 4, 16)]
    else:
        parts = [d, pack(q >> 4, 1, 1), pack(q & 15, 4, 16)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def as_floats(type: str, values: Scales) -> Raw:
    """Float32 [rows, k] rounded to F16, BF16 (to the nearest, ties to even) or F32, as bytes."""
    if type == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        found: Raw = ((bits + half) >> np.uint32(16)).astype("<u2").view(np.uint8)
        return found
    dtype = {"F16": "<f2", "F32": "<f4"}[type]
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32).astype(dtype).view(np.uint8)


def rounded(type: str, values: Scales) -> Scales:
    """Float32 numbers as F16, BF16 or F32 holds them, as float32."""
    raw, shape = as_floats(type, values).reshape(-1), values.shape
    if type == "BF16":
        found: Scales = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        return found.reshape(shape)
    return raw.view({"F16": "<f2", "F32": "<f4"}[type]).astype(np.float32).reshape(shape)


def unpack_words(words: NDArray[np.int32], bits: int, axis: int) -> Codes:
    """The 32 / bits whole numbers of each 32-bit word, the lowest bits first, side by side along
    ``axis`` (0 or 1)."""
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    mask = np.uint32((1 << bits) - 1)
    unsigned = words.view(np.uint32)
    if axis == 0:
        below = (unsigned[:, None, :] >> shifts[None, :, None]) & mask
        found: Codes = below.reshape(-1, words.shape[1]).astype(np.int16)
    else:
        beside = (unsigned[:, :, None] >> shifts) & mask
        found = beside.reshape(words.shape[0], -1).astype(np.int16)
    return found
