"""Plain numbers, and 8-bit floats with and without a scale."""

from __future__ import annotations

from functools import cache

import numpy as np

from strata.quant.block_type import BlockType, Decode, Floats, Raw


def _numbers(dtype: str) -> Decode:
    def decode(raw: Raw) -> Floats:
        return raw.view(dtype).astype(np.float32)

    return decode


def decode_bf16(raw: Raw) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def decode_bool(raw: Raw) -> Floats:
    out: Floats = (raw != 0).astype(np.float32)
    return out


@cache
def e4m3_values() -> Floats:
    """All 256 values of the 8-bit float E4M3 (bias 7, no infinities, NaN at 0x7f and 0xff).

    Source: OCP 8-bit Floating Point Specification, revision 1.0.
    """
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    magnitude[(code & 127) == 127] = np.nan
    values = np.where(code < 128, magnitude, -magnitude).astype(np.float32)
    values.flags.writeable = False
    return values


def decode_e4m3(raw: Raw) -> Floats:
    return e4m3_values()[raw]


def decode_e5m2(raw: Raw) -> Floats:
    """The 8-bit float E5M2 is the upper half of a half-precision number."""
    return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def decode_e4m3_b128(raw: Raw) -> Floats:
    """A float32 scale, then 128 E4M3 numbers: how 8-bit Hugging Face weights are presented."""
    return raw[:, :4].view("<f4") * e4m3_values()[raw[:, 4:]]


TYPES = (
    BlockType("F32", 0, 1, 4, _numbers("<f4")),
    BlockType("F16", 1, 1, 2, _numbers("<f2")),
    BlockType("BF16", 30, 1, 2, decode_bf16),
    BlockType("F64", 28, 1, 8, _numbers("<f8")),
    BlockType("I8", 24, 1, 1, _numbers("i1"), integer=True),
    BlockType("I16", 25, 1, 2, _numbers("<i2"), integer=True),
    BlockType("I32", 26, 1, 4, _numbers("<i4"), integer=True),
    BlockType("I64", 27, 1, 8, _numbers("<i8"), integer=True),
    BlockType("U8", None, 1, 1, _numbers("u1"), integer=True),
    BlockType("U16", None, 1, 2, _numbers("<u2"), integer=True),
    BlockType("U32", None, 1, 4, _numbers("<u4"), integer=True),
    BlockType("U64", None, 1, 8, _numbers("<u8"), integer=True),
    BlockType("BOOL", None, 1, 1, decode_bool, integer=True),
    BlockType("F8_E4M3", None, 1, 1, decode_e4m3),
    BlockType("F8_E5M2", None, 1, 1, decode_e5m2),
    BlockType("F8_E4M3_B128", None, 128, 132, decode_e4m3_b128),
)
