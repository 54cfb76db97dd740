"""Which weights a matrix can do without: magnitude, Wanda, and SparseGPT, which repairs the rest;
and which columns a layer can: LLM-Pruner's first-order Taylor.

Weights are [n, k], masks True where a weight stays. Patterns: a part of every row, or ``keep`` of
each ``of`` neighbours (2:4). Sources: Sun et al., arXiv:2306.11695 (Wanda); Frantar and Alistarh,
arXiv:2301.00774 (SparseGPT); 2:4 is of NVIDIA's sparse tensor cores; Ma et al.,
arXiv:2305.11627 (LLM-Pruner).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix, inverse_factor
from strata.records import dataclass

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """``keep`` of each ``of`` weights in a row stay; ``of`` divides k."""

    keep: int
    of: int


def best(scores: Matrix, pattern: Pattern) -> Mask:
    """The mask that keeps the highest scores of each run; of equal ones the first."""
    n = len(scores)
    runs = scores.reshape(n, -1, pattern.of)
    order = np.argsort(-runs, axis=2, kind="stable")
    mask = np.zeros(runs.shape, np.bool_)
    np.put_along_axis(mask, order[:, :, : pattern.keep], True, axis=2)
    return mask.reshape(scores.shape)


def magnitude(weights: Matrix, pattern: Pattern) -> Mask:
    """Keep the largest weights."""
    return best(np.abs(weights), pattern)


def wanda(weights: Matrix, norms: Matrix, pattern: Pattern) -> Mask:
    """Keep the largest of |weight| times the norm of its input, [k]."""
    return best(np.abs(weights) * norms, pattern)


def taylor(inputs: NDArray[np.floating], gradient: NDArray[np.floating]) -> Matrix:
    """By how much a loss is expected to change when an input of a matrix is left out, [k]:
    |input times the loss's gradient in it|, both [m, k], summed over the rows."""
    taken: Matrix = np.abs((inputs.astype(np.float64) * gradient).sum(axis=0))
    return taken


def without_columns(
    gates: Sequence[Floats], down: Floats, keep: NDArray[np.intp]
) -> tuple[list[Floats], Floats]:
    """A feed-forward part that is as wide as ``keep`` says: rows of the ``gates`` [k, m] and
    columns of ``down`` [n, k] that go together."""
    kept = np.ascontiguousarray(down[:, keep])
    return [np.ascontiguousarray(gate[keep]) for gate in gates], kept


def sparse_gpt(
    weights: Matrix, hessian: Matrix, pattern: Pattern, damping: float = 0.01
) -> tuple[Matrix, Mask]:
    """Weights and mask by w^2 / [H^-1]_jj, run after run of ``pattern.of`` columns, what is lost of
    a column made up for by the columns after it.

    ``hessian`` is X^T X [k, k] of the inputs; ``damping`` times its mean diagonal is added to it.
    """
    kept = weights.astype(np.float64).copy()
    k = kept.shape[1]
    upper = inverse_factor(hessian, damping)
    mask = np.zeros(kept.shape, np.bool_)
    for start in range(0, k, pattern.of):
        columns = slice(start, start + pattern.of)
        scores = (kept[:, columns] / np.diag(upper)[columns]) ** 2
        mask[:, columns] = best(scores, Pattern(pattern.keep, pattern.of))
        for j in range(start, start + pattern.of):
            lost = np.where(mask[:, j], 0.0, kept[:, j]) / upper[j, j]
            kept[:, j:] -= np.outer(lost, upper[j, j:])
    return np.where(mask, kept, 0.0), mask
