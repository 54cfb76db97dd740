"""One to two bits a weight: ternary TQ1_0 and TQ2_0, binary Q1_0, Q2_0.

Source of every layout: `ggml-common.h` and `ggml-quants.c` of the ggml project.
"""

from __future__ import annotations

import numpy as np

from strata.quant.bits import half, unpack
from strata.quant.block_type import BlockType, Floats, Raw


def decode_tq1_0(raw: Raw) -> Floats:
    """52 bytes of base-3 digits, d:f16; d * (digit - 1).

    A byte is a fraction of 256 with five digits after the point (four in the last 4 bytes):
    multiplying by a power of three modulo 256 and then by 3 pushes out the wanted digit.
    """
    n = len(raw)
    powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:, None]
    parts = (
        raw[:, None, 0:32] * powers,
        raw[:, None, 32:48] * powers,
        raw[:, None, 48:52] * powers[:4],
    )
    shifted = np.concatenate([part.reshape(n, -1) for part in parts], axis=1)
    digits = ((shifted.astype(np.uint16) * np.uint16(3)) >> 8).astype(np.int8) - np.int8(1)
    out: Floats = half(raw, 52) * digits.astype(np.float32)
    return out


def decode_tq2_0(raw: Raw) -> Floats:
    """64 bytes of 2 bits, d:f16; d * (q - 1)."""
    q = unpack(raw[:, :64], 2, 32).astype(np.int8) - np.int8(1)
    out: Floats = half(raw, 64) * q.astype(np.float32)
    return out


def decode_q1_0(raw: Raw) -> Floats:
    """d:f16, 16 bytes of sign bits: d where the bit is set, else -d."""
    d = half(raw, 0)
    return np.where(unpack(raw[:, 2:], 1, 1) != 0, d, -d)


def decode_q2_0(raw: Raw) -> Floats:
    """d:f16, 16 bytes of 2 bits in order; d * (q - 1)."""
    q = unpack(raw[:, 2:], 2, 1).astype(np.int8) - np.int8(1)
    out: Floats = half(raw, 0) * q.astype(np.float32)
    return out


TYPES = (
    BlockType("TQ1_0", 34, 256, 54, decode_tq1_0),
    BlockType("TQ2_0", 35, 256, 66, decode_tq2_0),
    BlockType("Q1_0", 41, 128, 18, decode_q1_0),
    BlockType("Q2_0", 42, 64, 18, decode_q2_0),
)
