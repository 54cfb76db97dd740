"""NF4: 16 levels that a normal distribution fills evenly, in blocks of 64, their scales in 8 bits.

The levels are quantiles of N(0, 1) scaled to -1 and 1, with an exact 0: eight from the lower half
and nine from the upper, of which both have 0. Scales less their mean are kept as numbers of the
dynamic tree in blocks of 256 (double quantisation): 4 + 8 / 64 + 32 / 16384 bits a weight. Source:
Dettmers et al., arXiv:2305.14314; the tables are those of bitsandbytes.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from strata.quant import dynamic_tree
from strata.quant.block_type import Floats
from strata.records import dataclass

BLOCK = 64
SCALES_BLOCK = 256
# The outermost quantile: between 1 - 1 / (2 * 15) and 1 - 1 / (2 * 16).
_OUTERMOST = 0.9677083


def levels() -> Floats:
    """The 16 levels, from -1 to 1, rising."""
    normal = NormalDist()
    upper = [normal.inv_cdf(p) for p in np.linspace(_OUTERMOST, 0.5, 9)[:-1]]
    lower = [-normal.inv_cdf(p) for p in np.linspace(_OUTERMOST, 0.5, 8)[:-1]]
    found = np.sort(np.array([*lower, 0.0, *upper]))
    scaled: Floats = (found / found.max()).astype(np.float32)
    return scaled


@dataclass(frozen=True)
class NF4:
    """``codes`` has two weights a byte, the first in the high bits; ``scales`` are numbers of
    dynamic tree levels, of which ``outer`` has the scales and ``offset`` the mean."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    outer: Floats
    offset: np.float32
    count: int

    @property
    def bits(self) -> float:
        """Bits a weight, all of it."""
        nbytes = self.codes.nbytes + self.scales.nbytes + self.outer.nbytes
        return 8 * nbytes / self.count


def encode(values: Floats) -> NF4:
    """All values, flattened; an odd one at the end is followed by a 0."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    starts = np.arange(0, flat.size, BLOCK)
    largest = np.maximum.reduceat(np.abs(flat), starts)
    whole = np.where(largest == 0, np.float32(1), largest)[np.arange(flat.size) // BLOCK]
    numbers = dynamic_tree.nearest(levels(), flat / whole)
    padded = np.append(numbers, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
    offset = largest.mean(dtype=np.float32)
    scales, outer = dynamic_tree.encode(largest - offset, SCALES_BLOCK)
    return NF4(padded[:, 0] << np.uint8(4) | padded[:, 1], scales, outer, offset, flat.size)


def decode(kept: NF4) -> Floats:
    """The values, flat."""
    numbers = np.stack([kept.codes >> 4, kept.codes & 15], axis=1).reshape(-1)[: kept.count]
    scales = dynamic_tree.decode(kept.scales, kept.outer, SCALES_BLOCK) + kept.offset
    found: Floats = levels()[numbers] * scales[np.arange(kept.count) // BLOCK]
    return found
