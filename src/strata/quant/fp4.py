"""4-bit floats with shared scales: MXFP4 and NVFP4.

Sources: OCP Microscaling Formats (MX) specification 1.0; `ggml-common.h` of the ggml project. Both
keep E2M1 values doubled as small integers, so the decoded scale is halved.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from strata.quant.bits import unpack
from strata.quant.block_type import BlockType, Floats, Raw
from strata.quant.floats import e4m3_values
from strata.quant.grids import grid


def e8m0_half(exponents: Raw) -> Floats:
    """2 ** (e - 128) of each byte; the two smallest are float32 subnormals and need other bits."""
    e = exponents.astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    out: Floats = bits.astype(np.uint32).view(np.float32)
    return out


def decode_mxfp4(raw: Raw) -> Floats:
    """e: one E8M0 byte, 16 bytes of nibbles."""
    return e8m0_half(raw[:, :1]) * grid("MXFP4")[unpack(raw[:, 1:], 4, 16)].astype(np.float32)


@cache
def ue4m3_half() -> Floats:
    """Half the value of each unsigned E4M3 byte. ggml reads the code 0x7f as zero and ignores the
    sign bit of all others, so 0xff is an ordinary number."""
    values = np.abs(e4m3_values()) / np.float32(2)
    values[0x7F], values[0xFF] = 0, 240
    out: Floats = values
    return out


def decode_nvfp4(raw: Raw) -> Floats:
    """4 unsigned E4M3 scales, one for each 16 values, then 32 bytes of nibbles."""
    n = len(raw)
    values = grid("MXFP4")[unpack(raw[:, 4:], 4, 8)].reshape(n, 4, 16).astype(np.float32)
    return (ue4m3_half()[raw[:, :4]][:, :, None] * values).reshape(n, 64)


TYPES = (
    BlockType("MXFP4", 39, 32, 17, decode_mxfp4),
    BlockType("NVFP4", 40, 64, 36, decode_nvfp4),
)
