"""Blocks of KV in fewer bytes, exactly: of numbers of two bytes the upper halves are much alike.

Bytes at even places and those at odd ones are brought together (as HDF5's shuffle filter does) and
compressed with zlib. Most is gained with bf16, whose upper halves are sign and exponent. A block
that does not become smaller stays as it is.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from strata.kv.store_directory import StoreError

_LEVEL = 1

Buffer = NDArray[np.uint8]


def packed(block: Buffer) -> Buffer:
    """Fewer bytes than uint8 [n] that ``unpacked`` gives back, or the block itself."""
    halves = np.concatenate([block[0::2], block[1::2]])
    out = np.frombuffer(zlib.compress(halves.data, _LEVEL), np.uint8)
    return out if len(out) < len(block) else block


def unpacked(part: Buffer, nbytes: int) -> Buffer:
    """The block of ``nbytes`` bytes; StoreError where it is not one, before more is made of it."""
    stream = zlib.decompressobj()
    try:
        halves = np.frombuffer(stream.decompress(part.data, nbytes), np.uint8)
    except zlib.error as error:
        raise StoreError(f"a compressed block is damaged: {error}") from None
    # What comes behind the bytes that were asked for, a checksum, is not there in all of them.
    if len(halves) < nbytes:
        raise StoreError("a compressed block is too short")
    out = np.empty(nbytes, np.uint8)
    even = (nbytes + 1) // 2
    out[0::2], out[1::2] = halves[:even], halves[even:]
    return out
