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

_PIECE = 1 << 16

UNPACKING_BYTES = 6 * _PIECE
"""A piece, what is left of it, what it gives while that grows, and zlib's window."""

Buffer = NDArray[np.uint8]


def packed(block: Buffer) -> Buffer:
    """Fewer bytes than uint8 [n] that ``unpacked`` gives back, or the block itself."""
    halves = np.concatenate([block[0::2], block[1::2]])
    out = np.frombuffer(zlib.compress(halves.data, _LEVEL), np.uint8)
    return out if len(out) < len(block) else block


def unpacked(part: Buffer, out: Buffer) -> Buffer:
    """``out``, uint8 [n], with the block of so many bytes; StoreError where the part is not one.
    Takes UNPACKING_BYTES beside them."""
    stream, even, done = zlib.decompressobj(), (len(out) + 1) // 2, 0
    try:
        for start in range(0, len(part), _PIECE):
            rest: bytes | memoryview = part[start : start + _PIECE].data
            # What comes behind the bytes that were asked for, a checksum, need not be there.
            while done < len(out) and not stream.eof:
                piece = np.frombuffer(stream.decompress(rest, _PIECE), np.uint8)[: len(out) - done]
                first = piece[: max(0, even - done)]
                out[0::2][done : done + len(first)] = first
                begin = max(0, done - even)
                out[1::2][begin : begin + len(piece) - len(first)] = piece[len(first) :]
                done += len(piece)
                rest = stream.unconsumed_tail
                if not rest and not len(piece):
                    break
    except zlib.error as error:
        raise StoreError(f"a compressed block is damaged: {error}") from None
    if done < len(out):
        raise StoreError("a compressed block is too short")
    return out
