"""Numbers into block formats, in plain numpy: for tests, tools and synthetic models.

Each encoder maps float32 [n_blocks, elements] to uint8 [n_blocks, nbytes]. Where the `gguf` package
has an encoder the bytes are equal to its; the others round to nearest under scales chosen from the
extremes of each block, without a search, and do not promise the bytes of ggml's encoders.
Inputs must be finite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from strata.quant.bits import half_bytes, pack
from strata.quant.block_type import BlockType, Floats, QuantError, Raw
from strata.quant.encode_blocks import (
    encode_iq4_nl,
    encode_iq4_xs,
    encode_q2_k,
    encode_q3_k,
    encode_q4_k,
    encode_q5_k,
    encode_q6_k,
)
from strata.quant.floats import e4m3_values
from strata.quant.fp4 import e8m0_half
from strata.quant.grids import grid

Encode = Callable[[Floats], Raw]

_CHUNK_ELEMENTS = 1 << 18


def quantize(type: BlockType, values: Floats) -> Raw:
    """Encode an array [..., k] of finite float32; returns uint8 [..., bytes of a row].

    Raises QuantError if there is no encoder for the type or k is not a whole number of blocks.
    """
    if type.name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise QuantError(f"there is no encoder for {type.name}; there are encoders for {known}")
    row_nbytes = type.tensor_nbytes(values.shape[-1:])
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, type.elements)
    out = np.empty((len(blocks), type.nbytes), dtype=np.uint8)
    step = max(1, _CHUNK_ELEMENTS // type.elements)
    for start in range(0, len(blocks), step):
        out[start : start + step] = ENCODERS[type.name](blocks[start : start + step])
    return out.reshape(*values.shape[:-1], row_nbytes)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        out: Floats = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        return out


def _round_away(values: Floats) -> Floats:
    """Halves away from zero, like C's roundf."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    out: Floats = np.sign(values) * (whole + np.floor(2 * (magnitude - whole)))
    return out


def _largest(blocks: Floats) -> Floats:
    """The value of largest magnitude in each block, with its sign."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)


def encode_f32(blocks: Floats) -> Raw:
    return blocks.view(np.uint8)


def encode_f16(blocks: Floats) -> Raw:
    return half_bytes(blocks)


def encode_bf16(blocks: Floats) -> Raw:
    """Round to nearest even."""
    bits = blocks.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)


def _levels(scaled: Floats, top: int) -> NDArray[np.uint8]:
    """Cut to whole numbers 0 to `top`; the caller has added the half that makes this rounding."""
    return np.trunc(scaled).astype(np.uint8).clip(0, top)


def _symmetric(blocks: Floats, bits: int) -> tuple[Floats, NDArray[np.uint8]]:
    """Scales that put the value of largest magnitude on the lowest level, and the levels."""
    middle = 1 << (bits - 1)
    d = _largest(blocks) / np.float32(-middle)
    return d, _levels(blocks * _inverse(d) + np.float32(middle + 0.5), 2 * middle - 1)


def _between(blocks: Floats, bits: int) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Scales and minima that span each block, and the levels."""
    top = (1 << bits) - 1
    low = blocks.min(axis=1, keepdims=True)
    d = (blocks.max(axis=1, keepdims=True) - low) / np.float32(top)
    return d, low, _levels((blocks - low) * _inverse(d) + np.float32(0.5), top)


def encode_q4_0(blocks: Floats) -> Raw:
    d, q = _symmetric(blocks, 4)
    return np.concatenate([half_bytes(d), pack(q, 4, 16)], axis=1)


def encode_q4_1(blocks: Floats) -> Raw:
    d, m, q = _between(blocks, 4)
    return np.concatenate([half_bytes(d), half_bytes(m), pack(q, 4, 16)], axis=1)


def encode_q5_0(blocks: Floats) -> Raw:
    d, q = _symmetric(blocks, 5)
    return np.concatenate([half_bytes(d), pack(q >> 4, 1, 1), pack(q & 15, 4, 16)], axis=1)


def encode_q5_1(blocks: Floats) -> Raw:
    d, m, q = _between(blocks, 5)
    parts = [half_bytes(d), half_bytes(m), pack(q >> 4, 1, 1), pack(q & 15, 4, 16)]
    return np.concatenate(parts, axis=1)


def encode_q8_0(blocks: Floats) -> Raw:
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    q = _round_away(blocks * _inverse(d)).astype(np.int8)
    return np.concatenate([half_bytes(d), q.view(np.uint8)], axis=1)


def _ternary(blocks: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    d = np.abs(blocks).max(axis=1, keepdims=True)
    return d, (_round_away(blocks * _inverse(d)) + 1).astype(np.uint8)


def encode_tq1_0(blocks: Floats) -> Raw:
    """Five base-3 digits become a fraction of 256, rounded up so that reading gets them back."""
    d, q = _ternary(blocks)
    powers = np.array([81, 27, 9, 3, 1], dtype=np.uint16)[:, None]
    parts = []
    for values, width in ((q[:, :160], 32), (q[:, 160:240], 16), (q[:, 240:], 4)):
        digits = values.reshape(len(q), -1, width)
        number = (digits * powers[: digits.shape[1]]).sum(axis=1)
        parts.append(((number * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate([*parts, half_bytes(d)], axis=1)


def encode_tq2_0(blocks: Floats) -> Raw:
    d, q = _ternary(blocks)
    return np.concatenate([pack(q, 2, 32), half_bytes(d)], axis=1)


def encode_mxfp4(blocks: Floats) -> Raw:
    """The exponent two below the largest value's, so that it lands between 4 and 8."""
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        exponent = np.where(largest > 0, np.floor(np.log2(largest)) + 125, 0).astype(np.uint8)
    levels = e8m0_half(exponent) * grid("MXFP4").astype(np.float32)
    nearest = np.abs(levels[:, None, :] - blocks[:, :, None]).argmin(axis=2)
    return np.concatenate([exponent, pack(nearest, 4, 16)], axis=1)


def encode_e4m3(values: Floats) -> Raw:
    """Nearest 8-bit float, halves to even, saturating at 448; any shape."""
    positive = e4m3_values()[:127]
    middles = (positive[1:] + positive[:-1]) / 2
    magnitude = np.abs(values)
    code = np.searchsorted(middles, magnitude, side="left")
    tie = (code < 126) & (magnitude == middles[np.minimum(code, 125)])
    code += tie & (code % 2 == 1)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def encode_e4m3_b128(blocks: Floats) -> Raw:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(448)
    codes = encode_e4m3(blocks * _inverse(scale))
    return np.concatenate([scale.astype("<f4").view(np.uint8), codes], axis=1)


ENCODERS: dict[str, Encode] = {
    "F32": encode_f32,
    "F16": encode_f16,
    "BF16": encode_bf16,
    "Q4_0": encode_q4_0,
    "Q4_1": encode_q4_1,
    "Q5_0": encode_q5_0,
    "Q5_1": encode_q5_1,
    "Q8_0": encode_q8_0,
    "Q2_K": encode_q2_k,
    "Q3_K": encode_q3_k,
    "Q4_K": encode_q4_k,
    "Q5_K": encode_q5_k,
    "Q6_K": encode_q6_k,
    "IQ4_NL": encode_iq4_nl,
    "IQ4_XS": encode_iq4_xs,
    "TQ1_0": encode_tq1_0,
    "TQ2_0": encode_tq2_0,
    "MXFP4": encode_mxfp4,
    "F8_E4M3": encode_e4m3,
    "F8_E4M3_B128": encode_e4m3_b128,
}
