"""ARCQuant: activations of 4 bits, with what the largest columns lose as further columns.

A column of which a number is larger than an eighth of the largest of all keeps, beside its 4-bit
floats, those of what they lose, and the weights of that column come twice: one product of the same
numbers makes up for it. Source: arXiv:2601.07475.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.micro_rotation import NVFP4, FloatFormat, nearest
from strata.quant.propagation import Matrix

THRESHOLD = 1 / 8


def four_bits(values: Matrix, format: FloatFormat = NVFP4) -> Matrix:
    """Rows of ``values`` [m, k] in 4-bit floats, each group by its largest number; the last group
    may be short."""
    m, k = values.shape
    filled = np.pad(values, ((0, 0), (0, -k % format.group)))
    unit = format.unit(values)
    groups = filled.reshape(-1, format.group) / unit
    at = np.searchsorted(format.scales, np.abs(groups).max(axis=1) / 6)
    scale = format.scales[at.clip(0, len(format.scales) - 1)][:, None]
    found: Matrix = (nearest((groups / scale).clip(-6, 6)) * scale * unit).reshape(m, -1)[:, :k]
    return found


def large_columns(x: Matrix, threshold: float = THRESHOLD) -> NDArray[np.intp]:
    """Which columns of ``x`` [m, k] have something that exceeds that part of the largest number."""
    most = np.abs(x).max(axis=0)
    return np.nonzero(most > threshold * most.max())[0]


def augmented(
    x: Matrix, weights: Matrix, columns: NDArray[np.intp], format: FloatFormat = NVFP4
) -> tuple[Matrix, Matrix]:
    """``x`` [m, k] in 4 bits and behind it what its ``columns`` lose, in 4 bits; ``weights`` [n, k]
    in 4 bits and behind them those of these columns: [m, k + s] and [n, k + s]."""
    near = four_bits(x, format)
    lost = four_bits((x - near)[:, columns], format)
    small = four_bits(weights, format)
    return np.hstack([near, lost]), np.hstack([small, small[:, columns]])
