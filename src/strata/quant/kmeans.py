"""SqueezeLLM: each row has levels of its own, where its weights are and where they matter.

Levels are the centres of weighted k-means: each squared error counts as much as the loss is
sensitive to that weight (the diagonal of Fisher's information, the mean of squared gradients). The
largest and the most sensitive weights are kept apart as halves. Source: Kim et al.,
arXiv:2306.07629.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix
from strata.quant.sparse import Sparse, highest, sparse
from strata.records import dataclass

LARGEST, MOST_SENSITIVE = 0.004, 0.0005
_ROUNDS = 12


@dataclass(frozen=True)
class Squeezed:
    """``codes`` [n, k] of ``width`` bits are numbers of their row's ``levels`` [n, 2^width]."""

    width: int
    levels: NDArray[np.float16]
    codes: NDArray[np.uint8]
    apart: Sparse

    @property
    def bits(self) -> float:
        """Bits a weight, all of it."""
        whole = self.width * self.codes.size + 8 * (self.levels.nbytes + self.apart.nbytes)
        return whole / self.codes.size


def encode(weights: Matrix, sensitivity: Matrix, width: int = 3, *, apart: bool = True) -> Squeezed:
    """``weights`` and ``sensitivity`` (not below 0), both [n, k]."""
    mask = np.zeros(weights.shape, np.bool_)
    if apart:
        mask = highest(np.abs(weights), LARGEST) | highest(sensitivity, MOST_SENSITIVE)
    matter = np.where(mask, 0, sensitivity)
    even = _even(np.where(mask, 0, weights), 1 << width)
    candidates = [
        _settled(weights, matter, start) for start in (even, _crowded(weights, matter, width))
    ]
    losses = [objective(weights, matter, levels) for levels in candidates]
    levels = np.where((losses[0] <= losses[1])[:, None], *candidates).astype(np.float16)
    levels.sort(axis=1)
    return Squeezed(width, levels, _nearest(weights, levels), sparse(mask, weights))


def decode(kept: Squeezed) -> Floats:
    """The values [n, k]."""
    dense = np.take_along_axis(kept.levels.astype(np.float32), kept.codes.astype(np.int64), axis=1)
    return kept.apart.put(dense)


def product(kept: Squeezed, x: Floats) -> Floats:
    """The matrix times ``x`` [k] without unpacking it: level by level looked up, column after
    column added up in float32, and last what is apart."""
    levels = kept.levels.astype(np.float32)
    rows = np.arange(len(levels))
    sums = np.zeros(len(levels), np.float32)
    places = np.repeat(rows, np.diff(kept.apart.starts))
    stands_in = np.zeros(kept.codes.shape, np.bool_)
    stands_in[places, kept.apart.columns] = True
    for j, number in enumerate(x.astype(np.float32)):
        term = levels[rows, kept.codes[:, j]] * number
        sums += np.where(stands_in[:, j], np.float32(0), term)
    terms = kept.apart.values.astype(np.float32) * x.astype(np.float32)[kept.apart.columns]
    np.add.at(sums, places, terms)
    return sums


def objective(weights: Matrix, sensitivity: Matrix, levels: Matrix) -> Matrix:
    """The weighted squared error of each row [n], each weight at its nearest level."""
    near = np.take_along_axis(levels, _nearest(weights, levels).astype(np.int64), axis=1)
    found: Matrix = ((weights - near) ** 2 * sensitivity).sum(axis=1)
    return found


def _even(weights: Matrix, count: int) -> Matrix:
    low, high = weights.min(axis=1), weights.max(axis=1)
    return np.linspace(low, high, count, axis=1)


def _crowded(weights: Matrix, sensitivity: Matrix, width: int) -> Matrix:
    """Levels between which there is as much sensitivity each."""
    order = np.argsort(weights, axis=1)
    mass = np.take_along_axis(sensitivity, order, axis=1).cumsum(axis=1) + 1e-300
    wanted = (np.arange(1 << width) + 0.5) / (1 << width)
    places = ((mass / mass[:, -1:])[:, :, None] < wanted).sum(axis=1)
    at = np.take_along_axis(order, places.clip(0, weights.shape[1] - 1), axis=1)
    return np.take_along_axis(weights, at, axis=1)


def _nearest(weights: Matrix, levels: NDArray[np.floating]) -> NDArray[np.uint8]:
    between = (levels[:, :-1].astype(np.float64) + levels[:, 1:]) / 2
    found = np.zeros(weights.shape, np.uint8)
    for border in between.T:
        found += weights > border[:, None]
    return found


def _settled(weights: Matrix, sensitivity: Matrix, levels: Matrix) -> Matrix:
    """Lloyd's rounds: no row's objective rises."""
    levels = np.sort(levels, axis=1)
    for _ in range(_ROUNDS):
        codes = _nearest(weights, levels)
        for number in range(levels.shape[1]):
            mine = np.where(codes == number, sensitivity, 0)
            mass = mine.sum(axis=1)
            centre = (mine * weights).sum(axis=1) / np.where(mass == 0, 1, mass)
            levels[:, number] = np.where(mass == 0, levels[:, number], centre)
        levels.sort(axis=1)
    return levels
