"""GPTQ's recursion by itself: what rounding a column loses is made up for by the columns after it.

In float64 and column by column, for formats that are studied; the native encoders do the same for
those that are written. Source: Frantar et al., arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def inverse_factor(hessian: Matrix, damping: float = 0.01) -> Matrix:
    """The upper triangular U with U^T U the inverse of ``hessian`` [k, k] (X^T X of the inputs), to
    which ``damping`` times its mean diagonal is added. Row j of it has the inverse of what is left
    once the columns before j are fixed."""
    held = damping * float(np.diag(hessian).mean()) * np.eye(len(hessian))
    factor: Matrix = np.linalg.cholesky(np.linalg.inv(hessian + held)).T
    return factor


def propagate(
    weights: Matrix, upper: Matrix, rounded: Callable[[int, Matrix], Matrix], step: int = 1
) -> Matrix:
    """What ``weights`` [n, k] become, ``step`` columns at a time.

    ``rounded`` is told the first of these columns and all weights as they are by then, and gives
    what its columns become, [n, step]. ``step`` divides k.
    """
    kept: Matrix = weights.astype(np.float64).copy()
    for first in range(0, kept.shape[1], step):
        here = slice(first, first + step)
        found = rounded(first, kept)
        lost = np.linalg.solve(upper[here, here].T, (kept[:, here] - found).T).T
        kept[:, first + step :] -= lost @ upper[here, first + step :]
        kept[:, here] = found
    return kept


def output_error(weights: Matrix, changed: Matrix, hessian: Matrix) -> float:
    """The sum of squared errors of the products: trace(D H D^T), with D what has changed."""
    apart = changed.astype(np.float64) - weights
    return float(np.einsum("nk,kl,nl->", apart, hessian, apart, optimize=True))


def standing_out(hessian: Matrix, times: float) -> NDArray[np.intp]:
    """Columns, rising, whose inputs' root mean square is more than so many times the median one."""
    size = np.sqrt(np.diag(hessian))
    return np.nonzero(size > times * np.median(size))[0]
