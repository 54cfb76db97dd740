"""Small blocks of 32 with one half-precision scale (and minimum): Q4_0 to Q8_1.

Source of every layout: `ggml-common.h` of the ggml project. `d` is the scale, `m` the minimum.
"""

from __future__ import annotations

import numpy as np

from strata.quant.bits import half, unpack
from strata.quant.block_type import BlockType, Floats, Raw


def decode_q4_0(raw: Raw) -> Floats:
    """d:f16, 16 bytes of nibbles; d * (q - 8)."""
    q = unpack(raw[:, 2:], 4, 16).astype(np.int8) - np.int8(8)
    out: Floats = half(raw, 0) * q.astype(np.float32)
    return out


def decode_q4_1(raw: Raw) -> Floats:
    """d:f16, m:f16, 16 bytes of nibbles; d * q + m."""
    q = unpack(raw[:, 4:], 4, 16).astype(np.float32)
    return half(raw, 0) * q + half(raw, 2)


def _five_bits(high: Raw, low: Raw) -> Raw:
    """The fifth bits of all 32 values lie together in 4 bytes, before the nibbles."""
    out: Raw = unpack(low, 4, 16) | (unpack(high, 1, 1) << np.uint8(4))
    return out


def decode_q5_0(raw: Raw) -> Floats:
    """d:f16, 4 bytes of fifth bits, 16 bytes of nibbles; d * (q - 16)."""
    q = _five_bits(raw[:, 2:6], raw[:, 6:]).astype(np.int8) - np.int8(16)
    out: Floats = half(raw, 0) * q.astype(np.float32)
    return out


def decode_q5_1(raw: Raw) -> Floats:
    """d:f16, m:f16, 4 bytes of fifth bits, 16 bytes of nibbles; d * q + m."""
    q = _five_bits(raw[:, 4:8], raw[:, 8:]).astype(np.float32)
    return half(raw, 0) * q + half(raw, 2)


def decode_q8_0(raw: Raw) -> Floats:
    """d:f16, 32 signed bytes; d * q."""
    return half(raw, 0) * raw[:, 2:].view(np.int8).astype(np.float32)


def decode_q8_1(raw: Raw) -> Floats:
    """d:f16, s:f16 (d times the sum of the values, only for dot products), 32 signed bytes."""
    return half(raw, 0) * raw[:, 4:].view(np.int8).astype(np.float32)


TYPES = (
    BlockType("Q4_0", 2, 32, 18, decode_q4_0),
    BlockType("Q4_1", 3, 32, 20, decode_q4_1),
    BlockType("Q5_0", 6, 32, 22, decode_q5_0),
    BlockType("Q5_1", 7, 32, 24, decode_q5_1),
    BlockType("Q8_0", 8, 32, 34, decode_q8_0),
    BlockType("Q8_1", 9, 32, 36, decode_q8_1),
)
