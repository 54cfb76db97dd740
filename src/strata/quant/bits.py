"""Bit fields of block formats, packed and unpacked for many blocks at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats, Raw


def unpack(raw: Raw, bits: int, group: int) -> Raw:
    """Split bytes [n, m] into fields of `bits` bits, [n, m * 8 / bits].

    Formats interleave: within each run of `group` bytes come first the lowest fields of all bytes,
    then the next ones. `group=1` reads the fields of each byte one after the other.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = raw.reshape(len(raw), -1, 1, group) >> shifts
    out: Raw = (fields & np.uint8((1 << bits) - 1)).reshape(len(raw), -1)
    return out


def pack(fields: NDArray[np.integer], bits: int, group: int) -> Raw:
    """The inverse of `unpack`: fields [n, m * 8 / bits], each below 2**bits, into bytes [n, m]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = fields.astype(np.uint8).reshape(len(fields), -1, 8 // bits, group) << shifts
    out: Raw = np.bitwise_or.reduce(parts, axis=2).reshape(len(fields), -1)
    return out


def half(raw: Raw, at: int) -> Floats:
    """The IEEE half-precision number at byte `at` of each block, float32 [n, 1]."""
    return raw[:, at : at + 2].view("<f2").astype(np.float32)


def half_bytes(values: Floats) -> Raw:
    """float32 [n, 1] as half-precision bytes [n, 2], rounded to nearest even."""
    with np.errstate(over="ignore"):
        return values.astype("<f2").view(np.uint8)
