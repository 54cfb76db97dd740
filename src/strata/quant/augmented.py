"""ARCQuant: activations of 4 bits, with what the largest columns lose as further columns.

A column of which a number is larger than an eighth of the largest of all keeps, beside its 4-bit
floats, those of what they lose, and the weights of that column come twice: one product of the same
numbers makes up for it. A file of weights has it the other way round: the weights of large columns
come with what they lose, and the inputs of these columns twice. Source: arXiv:2601.07475.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.micro_rotation import NVFP4, FloatFormat, encode_scaled, nearest
from strata.quant.propagation import Matrix, standing_out
from strata.records import dataclass

THRESHOLD = 1 / 8
_TIMES = 2.0


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


@dataclass(frozen=True)
class Augmented:
    """A matrix [n, k] in NVFP4: ``values`` [n, k] with the ``scales`` [n, k / 16] of groups, and
    ``lost`` [n, s] with ``lost_scales`` [n, s / 16], which belong to the ``columns`` [s]. Scales
    are E4M3 numbers times the unit of each, ``units`` [2]."""

    values: Matrix
    scales: Matrix
    columns: NDArray[np.intp]
    lost: Matrix
    lost_scales: Matrix
    units: Matrix


def encode(weights: Matrix, hessian: Matrix) -> Augmented:
    """``weights`` [n, k] by the inputs' ``hessian``; columns of inputs of twice the usual size, in
    whole groups of the largest, keep what they lose."""
    size = np.diag(hessian)
    count = -(-len(standing_out(hessian, _TIMES)) // NVFP4.group) * NVFP4.group
    columns = np.sort(np.argsort(-size, kind="stable")[:count])
    values, scales = encode_scaled(weights, hessian, NVFP4, rotated=False)
    gap = (weights - values)[:, columns]
    lost, lost_scales = gap, gap
    if count:
        lost, lost_scales = encode_scaled(gap, np.eye(count), NVFP4, rotated=False)
    units = np.array([NVFP4.unit(weights), NVFP4.unit(gap)])
    return Augmented(values, scales, columns, lost, lost_scales, units)


def decode(kept: Augmented) -> Matrix:
    """The weights [n, k] that it stands for."""
    found: Matrix = kept.values.copy()
    found[:, kept.columns] += kept.lost
    return found
