"""Blocks of 256 whose sub-blocks have quantised scales: Q2_K to Q6_K, Q8_K.

Source of every layout: `ggml-common.h` of the ggml project.
"""

from __future__ import annotations

import numpy as np

from strata.quant.bits import half, unpack
from strata.quant.block_type import BlockType, Floats, Raw


def decode_q2_k(raw: Raw) -> Floats:
    """16 bytes (low nibble scale, high nibble minimum), 64 bytes of 2 bits, d:f16, dmin:f16."""
    n = len(raw)
    scales = raw[:, :16]
    dl = half(raw, 80) * (scales & 15).astype(np.float32)
    ml = half(raw, 82) * (scales >> 4).astype(np.float32)
    q = unpack(raw[:, 16:80], 2, 32).reshape(n, 16, 16).astype(np.float32)
    return (dl[:, :, None] * q - ml[:, :, None]).reshape(n, 256)


def q3_k_scales(packed: Raw) -> Raw:
    """16 six-bit scales (offset by 32) from 12 bytes: 8 bytes of low nibbles, 4 of high pairs."""
    out: Raw = unpack(packed[:, :8], 4, 8) | (unpack(packed[:, 8:], 2, 4) << np.uint8(4))
    return out


def decode_q3_k(raw: Raw) -> Floats:
    """32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of scales, d:f16; a clear third bit
    means minus four."""
    n = len(raw)
    scales = q3_k_scales(raw[:, 96:108]).astype(np.int8) - np.int8(32)
    dl = half(raw, 108) * scales.astype(np.float32)
    third = unpack(raw[:, :32], 1, 32).astype(np.int8)
    q = unpack(raw[:, 32:96], 2, 32).astype(np.int8) + np.int8(4) * third - np.int8(4)
    out: Floats = (dl[:, :, None] * q.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)
    return out


def k4_scales(packed: Raw) -> tuple[Raw, Raw]:
    """8 six-bit scales and 8 six-bit minima from the 12 bytes that Q4_K and Q5_K share.

    The first four of each sit in the low six bits of bytes 0-3 and 4-7; the last four have their
    low nibbles in bytes 8-11 and their two high bits on top of the first four.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = [first & 63, (third & 15) | ((first >> 6) << np.uint8(4))]
    minima = [second & 63, (third >> 4) | ((second >> 6) << np.uint8(4))]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def _scaled_and_shifted(raw: Raw, q: Raw) -> Floats:
    """(d * scale) * q - (dmin * minimum) per sub-block of 32; the header is d, dmin, 12 bytes."""
    scales, minima = k4_scales(raw[:, 4:16])
    dl = half(raw, 0) * scales.astype(np.float32)
    ml = half(raw, 2) * minima.astype(np.float32)
    values = q.reshape(len(raw), 8, 32).astype(np.float32)
    return (dl[:, :, None] * values - ml[:, :, None]).reshape(len(raw), 256)


def decode_q4_k(raw: Raw) -> Floats:
    """d:f16, dmin:f16, 12 bytes of scales and minima, 128 bytes of nibbles."""
    return _scaled_and_shifted(raw, unpack(raw[:, 16:], 4, 32))


def decode_q5_k(raw: Raw) -> Floats:
    """d:f16, dmin:f16, 12 bytes of scales and minima, 32 bytes of fifth bits, 128 of nibbles."""
    high = unpack(raw[:, 16:48], 1, 32) << np.uint8(4)
    return _scaled_and_shifted(raw, unpack(raw[:, 48:], 4, 32) | high)


def decode_q6_k(raw: Raw) -> Floats:
    """128 bytes of nibbles, 64 bytes of upper pairs, 16 signed scales, d:f16; q is offset by 32."""
    n = len(raw)
    scales = raw[:, 192:208].view(np.int8).astype(np.float32)
    dl = half(raw, 208) * scales
    high = unpack(raw[:, 128:192], 2, 32) << np.uint8(4)
    q = (unpack(raw[:, :128], 4, 64) | high).astype(np.int8) - np.int8(32)
    out: Floats = (dl[:, :, None] * q.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)
    return out


def decode_q8_k(raw: Raw) -> Floats:
    """d:f32, 256 signed bytes, 16 sums of 16 values (int16, only for dot products)."""
    return raw[:, :4].view("<f4") * raw[:, 4:260].view(np.int8).astype(np.float32)


TYPES = (
    BlockType("Q2_K", 10, 256, 84, decode_q2_k),
    BlockType("Q3_K", 11, 256, 110, decode_q3_k),
    BlockType("Q4_K", 12, 256, 144, decode_q4_k),
    BlockType("Q5_K", 13, 256, 176, decode_q5_k),
    BlockType("Q6_K", 14, 256, 210, decode_q6_k),
    BlockType("Q8_K", 15, 256, 292, decode_q8_k),
)
