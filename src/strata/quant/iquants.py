"""Codebook formats: IQ1_S to IQ4_XS.

Source of every layout: `ggml-common.h` and `ggml-quants.c` of the ggml project; the codebooks are
in `grids.py`. `d` is the half-precision scale of the block of 256 (of 32 in IQ4_NL).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.bits import half, unpack
from strata.quant.block_type import BlockType, Floats, Raw
from strata.quant.grids import grid


def _from_grid(name: str, index: NDArray[np.integer]) -> Floats:
    """Codebook rows, float32 [n, indices * row length]."""
    out: Floats = grid(name)[index].reshape(len(index), -1).astype(np.float32)
    return out


def _signs(bits: Raw) -> Floats:
    """-1 for a set bit, +1 for a clear one; bytes [n, m] give [n, 8 * m]."""
    out: Floats = np.float32(1) - np.float32(2) * unpack(bits, 1, 1).astype(np.float32)
    return out


def _times(scale: Floats, values: Floats) -> Floats:
    """Multiply [n, 256] by one scale for each equal share of the block."""
    n = len(values)
    return (scale[:, :, None] * values.reshape(n, scale.shape[1], -1)).reshape(n, 256)


def _packed_signs(words: NDArray[np.uint32]) -> Floats:
    """Four 7-bit codes a word; the eighth sign of each makes the number of minus signs even."""
    shifts = np.array([0, 7, 14, 21], dtype=np.uint32)
    codes = (words[:, :, None] >> shifts) & np.uint32(127)
    return _signs(grid("SIGNS")[codes].reshape(len(words), -1))


def decode_iq2_xxs(raw: Raw) -> Floats:
    """d, then for each 32 values: 4 codebook indices, one word of signs with a scale on top."""
    words = raw[:, 2:].view("<u4").reshape(len(raw), 8, 2)
    index = np.ascontiguousarray(words[:, :, 0]).view(np.uint8)
    signs = words[:, :, 1]
    scale = (np.float32(0.5) + (signs >> 28).astype(np.float32)) * half(raw, 0) * np.float32(0.25)
    return _times(scale, _from_grid("IQ2_XXS", index)) * _packed_signs(signs)


def decode_iq2_xs(raw: Raw) -> Floats:
    """d, 32 words (9 bits of index, 7 of signs), 8 bytes of nibble scales, one for 16 values."""
    words = raw[:, 2:66].view("<u2")
    scale = _nibble_scales(raw[:, 66:74], half(raw, 0))
    signs = _signs(grid("SIGNS")[words >> 9])
    return _times(scale, _from_grid("IQ2_XS", words & 511)) * signs


def _nibble_scales(packed: Raw, d: Floats) -> Floats:
    scales = unpack(packed, 4, 1).astype(np.float32)
    out: Floats = (np.float32(0.5) + scales) * d * np.float32(0.25)
    return out


def decode_iq2_s(raw: Raw) -> Floats:
    """d, 32 low index bytes, 32 sign bytes, 8 bytes of upper index pairs, 8 of nibble scales."""
    index = raw[:, 2:34].astype(np.uint16) | (unpack(raw[:, 66:74], 2, 1).astype(np.uint16) << 8)
    scale = _nibble_scales(raw[:, 74:82], half(raw, 0))
    return _times(scale, _from_grid("IQ2_S", index)) * _signs(raw[:, 34:66])


def decode_iq3_xxs(raw: Raw) -> Floats:
    """d, 64 index bytes, 8 words of signs with a scale on top, one for 32 values."""
    signs = raw[:, 66:98].view("<u4")
    scale = (np.float32(0.5) + (signs >> 28).astype(np.float32)) * half(raw, 0) * np.float32(0.5)
    return _times(scale, _from_grid("IQ3_XXS", raw[:, 2:66])) * _packed_signs(signs)


def decode_iq3_s(raw: Raw) -> Floats:
    """d, 64 low index bytes, 8 bytes of ninth bits, 32 sign bytes, 4 bytes of nibble scales."""
    index = raw[:, 2:66].astype(np.uint16) | (unpack(raw[:, 66:74], 1, 1).astype(np.uint16) << 8)
    scales = unpack(raw[:, 106:110], 4, 1)
    scale = half(raw, 0) * (np.uint8(1) + np.uint8(2) * scales).astype(np.float32)
    return _times(scale, _from_grid("IQ3_S", index)) * _signs(raw[:, 74:106])


def decode_iq1_s(raw: Raw) -> Floats:
    """d, 32 low index bytes, 8 words: 4 upper index triples, a 3-bit scale, the sign of the shift
    by an eighth."""
    n = len(raw)
    words = raw[:, 34:50].view("<u2")
    high = (words[:, :, None] >> np.array([0, 3, 6, 9], dtype=np.uint16)) & np.uint16(7)
    index = raw[:, 2:34].astype(np.uint16) | (high << 8).reshape(n, 32)
    scale = half(raw, 0) * (2 * ((words >> 12) & 7) + 1).astype(np.float32)
    shift = np.where(words & 0x8000, np.float32(-0.125), np.float32(0.125))
    values = _from_grid("IQ1_S", index).reshape(n, 8, 32) + shift[:, :, None]
    return _times(scale, values.reshape(n, 256))


def decode_iq1_m(raw: Raw) -> Floats:
    """32 low index bytes, 16 bytes of nibbles (upper index triple, sign of the shift), 4 words of
    four 3-bit scales each. The words' top nibbles together are d."""
    n = len(raw)
    words = raw[:, 48:56].view("<u2")
    top = (words >> 12) << np.array([0, 4, 8, 12], dtype=np.uint16)
    d = np.bitwise_or.reduce(top, axis=1, keepdims=True).view(np.float16).astype(np.float32)
    scales = (words[:, :, None] >> np.array([0, 3, 6, 9], dtype=np.uint16)) & np.uint16(7)
    scale = d * (2 * scales.reshape(n, 16) + 1).astype(np.float32)
    nibbles = unpack(raw[:, 32:48], 4, 1)
    index = raw[:, :32].astype(np.uint16) | ((nibbles & 7).astype(np.uint16) << 8)
    shift = np.where(nibbles & 8, np.float32(-0.125), np.float32(0.125))
    values = _from_grid("IQ1_S", index).reshape(n, 32, 8) + shift[:, :, None]
    return _times(scale, values.reshape(n, 256))


def decode_iq4_nl(raw: Raw) -> Floats:
    """d:f16, 16 bytes of nibbles that index 16 uneven levels."""
    return half(raw, 0) * grid("IQ4_NL")[unpack(raw[:, 2:], 4, 16)].astype(np.float32)


def decode_iq4_xs(raw: Raw) -> Floats:
    """d, 2 bytes of upper scale pairs, 4 bytes of lower scale nibbles, 128 bytes of nibbles; the
    8 scales are offset by 32."""
    scales = unpack(raw[:, 4:8], 4, 1) | (unpack(raw[:, 2:4], 2, 1) << np.uint8(4))
    scale = half(raw, 0) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32)
    return _times(scale, grid("IQ4_NL")[unpack(raw[:, 8:], 4, 16)].astype(np.float32))


TYPES = (
    BlockType("IQ2_XXS", 16, 256, 66, decode_iq2_xxs),
    BlockType("IQ2_XS", 17, 256, 74, decode_iq2_xs),
    BlockType("IQ3_XXS", 18, 256, 98, decode_iq3_xxs),
    BlockType("IQ1_S", 19, 256, 50, decode_iq1_s),
    BlockType("IQ4_NL", 20, 32, 18, decode_iq4_nl),
    BlockType("IQ3_S", 21, 256, 110, decode_iq3_s),
    BlockType("IQ2_S", 22, 256, 82, decode_iq2_s),
    BlockType("IQ4_XS", 23, 256, 136, decode_iq4_xs),
    BlockType("IQ1_M", 29, 256, 56, decode_iq1_m),
)
