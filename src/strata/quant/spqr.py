"""SpQR: GPTQ in groups so small that their scales are quantised too, and a few weights as halves.

A group of 16 columns of a row has a scale and a zero point, of 3 bits each: numbers between the
least and the greatest of 16 rows, which are halves. Apart are the weights without which the rest of
their group would lose least. Source: Dettmers et al., arXiv:2306.03078.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix, inverse_factor, propagate
from strata.quant.sparse import Sparse, highest, sparse
from strata.records import dataclass

GROUP = 16
ROWS = 16
SCALE_BITS = 3


@dataclass(frozen=True)
class SpQR:
    """``codes`` [n, k] of ``width`` bits; ``scales`` and ``zeros`` [n, k / 16] of 3 bits, and of
    each 16 rows the least of both and the steps, ``outer`` [4, n / 16, k / 16]."""

    width: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    zeros: NDArray[np.uint8]
    outer: NDArray[np.float16]
    apart: Sparse

    @property
    def bits(self) -> float:
        """Bits a weight, all of it."""
        small = self.width * self.codes.size + SCALE_BITS * (self.scales.size + self.zeros.size)
        return (small + 8 * (self.outer.nbytes + self.apart.nbytes)) / self.codes.size


def encode(
    weights: Matrix, hessian: Matrix, width: int = 3, outliers: float = 0.01, damping: float = 0.01
) -> SpQR:
    """``weights`` [n, k], n and k multiples of 16, by the inputs' ``hessian`` [k, k]."""
    n, k = weights.shape
    upper = inverse_factor(hessian, damping)
    loss = 1 / (upper**2).sum(axis=0)
    mask = highest(_gains(weights, loss, width), outliers)
    codes = np.zeros((n, k), np.uint8)
    scales, zeros = (np.zeros((n, k // GROUP), np.uint8) for _ in range(2))
    outer = np.zeros((4, n // ROWS, k // GROUP), np.float16)
    exact = np.zeros((n, k))

    def rounded(j: int, kept: Matrix) -> Matrix:
        group = j // GROUP
        if j % GROUP == 0:
            here = slice(j, j + GROUP)
            fitted = _fit(kept[:, here], mask[:, here], width)
            for number, (kind, found) in enumerate(zip((scales, zeros), fitted, strict=True)):
                kind[:, group], outer[2 * number, :, group], outer[2 * number + 1, :, group] = (
                    _levels(found)
                )
        scale, zero = (
            _numbers(kind[:, group], outer[2 * i, :, group], outer[2 * i + 1, :, group])
            for i, kind in enumerate((scales, zeros))
        )
        column = kept[:, j]
        codes[:, j] = _codes(column, scale, zero, width)
        exact[:, j] = column.astype(np.float16)
        near = _values(codes[:, j], scale, zero)
        return np.where(mask[:, j], exact[:, j], near)[:, None]

    propagate(weights, upper, rounded)
    return SpQR(width, codes, scales, zeros, outer, sparse(mask, exact))


def decode(kept: SpQR) -> Floats:
    """The values [n, k]."""
    rows = (
        _numbers(kind, kept.outer[2 * i], kept.outer[2 * i + 1])
        for i, kind in enumerate((kept.scales, kept.zeros))
    )
    scale, zero = (np.repeat(x, GROUP, axis=1) for x in rows)
    return kept.apart.put(_values(kept.codes, scale, zero))


def _values(codes: NDArray[np.uint8], scale: Floats, zero: Floats) -> Floats:
    found: Floats = scale * (codes.astype(np.float32) - zero)
    return found


def _codes(column: Matrix, scale: Floats, zero: Floats, width: int) -> NDArray[np.uint8]:
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(column / safe + zero), 0, (1 << width) - 1).astype(np.uint8)


def _fit(weights: Matrix, mask: NDArray[np.bool_], width: int) -> tuple[Matrix, Matrix]:
    """Scale and zero point of each row's group, by what is not apart of it and 0."""
    low = np.where(mask, 0, weights).min(axis=-1).clip(None, 0)
    high = np.where(mask, 0, weights).max(axis=-1).clip(0)
    scale = (high - low) / ((1 << width) - 1)
    return scale, -low / np.where(scale == 0, 1, scale)


def _levels(values: Matrix) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Codes [n] of 3 bits, the least and the step of each 16 rows."""
    runs = values.reshape(-1, ROWS)
    least = runs.min(axis=1).astype(np.float16)
    step = ((runs.max(axis=1) - least) / ((1 << SCALE_BITS) - 1)).astype(np.float16)
    safe = np.where(step == 0, np.float16(1), step).astype(np.float64)
    codes = np.rint((runs - least[:, None]) / safe[:, None]).clip(0, (1 << SCALE_BITS) - 1)
    return codes.astype(np.uint8).reshape(-1), least, step


def _numbers(
    codes: NDArray[np.uint8], least: NDArray[np.float16], step: NDArray[np.float16]
) -> Floats:
    low, by = (np.repeat(x.astype(np.float32), ROWS, axis=0) for x in (least, step))
    found: Floats = low + by * codes
    return found


def _gains(weights: Matrix, loss: Matrix, width: int) -> Matrix:
    """By how much a group's weighted error falls when one of its weights is kept apart."""
    n, k = weights.shape
    groups, by = weights.reshape(n, -1, GROUP), loss.reshape(1, -1, GROUP)

    def error(mask: NDArray[np.bool_]) -> Matrix:
        scale, zero = (x[..., None].astype(np.float32) for x in _fit(groups, mask, width))
        near = _values(_codes(groups, scale, zero, width), scale, zero)
        found: Matrix = (np.where(mask, 0, groups - near) ** 2 * by).sum(axis=-1)
        return found

    whole = error(np.zeros(groups.shape, np.bool_))
    gains = np.empty(groups.shape)
    for one in range(GROUP):
        mask = np.zeros(groups.shape, np.bool_)
        mask[..., one] = True
        gains[..., one] = whole - error(mask)
    return gains.reshape(n, k)
