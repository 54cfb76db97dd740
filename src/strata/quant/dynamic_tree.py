"""Dynamic tree quantisation: 8 bits for numbers of very different sizes, as optimiser states are.

After the sign each zero bit divides the range by ten, the first one ends them, and the bits that
are left divide what is left of the range evenly; blocks of 2048 share a scale. Source: Dettmers et
al., arXiv:2110.02861, and the signed map of bitsandbytes, whose 256 levels these are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats

BLOCK = 2048
_ZEROS = 7


def levels() -> Floats:
    """The 256 levels, from -0.993 to 1, rising."""
    found = [0.0, 1.0]
    for zeros in range(_ZEROS):
        edges = np.linspace(0.1, 1, 2 ** (_ZEROS - 1 - zeros) + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0**-zeros
        found += [*middles, *-middles]
    return np.sort(np.array(found, np.float32))


def nearest(table: Floats, values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The number of the nearest level of a rising table of up to 256, the lower one of two that are
    as near."""
    between = (table[:-1] + table[1:]) / 2
    return np.searchsorted(between, values).astype(np.uint8)


def encode(values: Floats, block: int = BLOCK) -> tuple[NDArray[np.uint8], Floats]:
    """Level numbers of all values, flattened, and the largest magnitude of each block; the last
    block may be short."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    starts = np.arange(0, flat.size, block)
    if not flat.size:
        return np.empty(0, np.uint8), np.empty(0, np.float32)
    scales = np.maximum.reduceat(np.abs(flat), starts)
    whole = np.where(scales == 0, np.float32(1), scales)[np.arange(flat.size) // block]
    return nearest(levels(), flat / whole), scales.astype(np.float32)


def decode(codes: NDArray[np.uint8], scales: Floats, block: int = BLOCK) -> Floats:
    """The values, flat."""
    found: Floats = levels()[codes] * scales[np.arange(codes.size) // block]
    return found
