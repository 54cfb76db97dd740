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
