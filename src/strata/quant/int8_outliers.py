"""LLM.int8(): int8 products in which the few columns of large activations are kept apart.

Rows of activations and rows of weights have a scale each, and products of int8 are summed as whole
numbers; a column of which some activation reaches the threshold is multiplied in float32 instead.
Source: Dettmers et al., arXiv:2208.07339. What it gains and loses is measured with this; the native
kernels quantise activations in blocks of 32, which holds an outlier to its block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix, standing_out
from strata.records import dataclass

THRESHOLD = 6.0


def _rows(values: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Whole numbers of up to 127, and the scale of each row."""
    scales = np.abs(values).max(axis=1, keepdims=True, initial=0) / np.float32(127)
    safe = np.where(scales == 0, np.float32(1), scales)
    return np.rint(values / safe).astype(np.int32), safe


def product(x: Floats, weights: Floats) -> Floats:
    """x [m, k] times weights [n, k] transposed, both in int8: [m, n]."""
    (q, scale), (w, by) = _rows(x), _rows(weights)
    found: Floats = (q @ w.T).astype(np.float32) * scale * by.T
    return found


def outliers(x: Floats, threshold: float = THRESHOLD) -> NDArray[np.bool_]:
    """Columns [k] of which some value reaches the threshold."""
    return np.asarray((np.abs(x) >= threshold).any(axis=0))


def decomposed_product(x: Floats, weights: Floats, threshold: float = THRESHOLD) -> Floats:
    """The same with outlier columns in float32."""
    apart = outliers(x, threshold)
    exact: Floats = x[:, apart] @ weights[:, apart].T
    return product(x[:, ~apart], weights[:, ~apart]) + exact


@dataclass(frozen=True)
class Decomposed:
    """A matrix [n, k]: whole numbers ``codes`` [n, k] of up to 127 times the ``scales`` [n] of
    rows, 0 in the ``columns`` [s] that are there as they are, as halves, in ``values`` [n, s]."""

    codes: NDArray[np.int8]
    scales: Floats
    columns: NDArray[np.intp]
    values: NDArray[np.float16]


def encode(weights: Floats, hessian: Matrix) -> Decomposed:
    """Weights as the product has them. Which columns are apart is said by a text's moments, once
    for all inputs: those of six times the usual size."""
    apart = standing_out(hessian, THRESHOLD)
    left = weights.copy()
    left[:, apart] = 0
    codes, scales = _rows(left)
    values = weights[:, apart].clip(-65504, 65504).astype(np.float16)
    return Decomposed(codes.astype(np.int8), scales[:, 0], apart, values)


def decode(kept: Decomposed) -> Floats:
    """The weights [n, k] that it stands for."""
    found: Floats = kept.codes.astype(np.float32) * kept.scales[:, None]
    found[:, kept.columns] = kept.values
    return found
