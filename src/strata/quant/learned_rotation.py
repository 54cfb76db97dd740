"""SpinQuant's rotations: learnt on the set of orthogonal matrices, from one of Hadamard's kind.

What is learnt from is the error of rounding what is turned, rows of weights and of activations, to
a few bits, not the loss of the whole model as its authors do: nothing has to be run. Each step is
Cayley's: along the gradient's part that stays orthogonal. Source: Liu et al., arXiv:2405.16406.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.quant.propagation import Matrix


def rounded(values: Matrix, bits: int) -> Matrix:
    """Rows [n, k] in whole numbers of so many bits times a scale of the row."""
    most = (1 << (bits - 1)) - 1
    scale = np.abs(values).max(axis=1, keepdims=True) / most
    found: Matrix = np.rint(values / np.where(scale == 0, 1, scale)) * scale
    return found


def loss(matrices: Sequence[Matrix], turn: Matrix, bits: int) -> float:
    """The relative squared error of all ``matrices`` [n, k] after ``turn`` [k, k], in sum."""
    return float(sum(_lost(m, turn, bits)[0] for m in matrices))


def learn(
    matrices: Sequence[Matrix], start: Matrix, bits: int = 4, steps: int = 50, rate: float = 0.05
) -> Matrix:
    """The best rotation [k, k] seen on the way from ``start``, which is orthogonal, too."""
    turn: Matrix = start.copy()
    best = turn
    least = loss(matrices, start, bits)
    for step in range(steps):
        slope = np.sum([_lost(m, turn, bits)[1] for m in matrices], axis=0)
        skew = slope @ turn.T - turn @ slope.T
        size = float(np.linalg.norm(skew, 2))
        if size == 0:
            break
        turn = cayley(skew * (rate * (1 - step / steps) / size), turn)
        then = loss(matrices, turn, bits)
        if then < least:
            least, best = then, turn
    return best


def cayley(skew: Matrix, turn: Matrix) -> Matrix:
    """(1 + A / 2)^-1 (1 - A / 2) ``turn``, orthogonal where A = ``skew`` is its negative turned
    over."""
    one: Matrix = np.eye(len(turn), dtype=np.float64)
    found: Matrix = np.linalg.solve(one + skew / 2, (one - skew / 2) @ turn).astype(np.float64)
    return found


def _lost(values: Matrix, turn: Matrix, bits: int) -> tuple[float, Matrix]:
    """The error, and its gradient in the rotation where numbers keep what they are rounded to."""
    turned = values @ turn
    apart = turned - rounded(turned, bits)
    whole = float((values**2).sum())
    slope: Matrix = 2 * values.T @ apart / whole
    return float((apart**2).sum()) / whole, slope
