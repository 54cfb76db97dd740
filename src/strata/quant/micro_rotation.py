"""4-bit floats by GPTQ in rotated groups (MR-GPTQ).

The columns of each group of one scale are turned by a Hadamard matrix, and so are the inputs, so
that no number of a group stands out; scales are searched for where a group begins, on the grid that
the format has for them: powers of two (MXFP4, groups of 32) or E4M3 numbers (NVFP4, of 16). Columns
come as they are. Source: Egiazarian et al., arXiv:2509.23202.
"""

from __future__ import annotations

import numpy as np

from strata.quant.block_type import Floats
from strata.quant.floats import e4m3_values
from strata.quant.propagation import Matrix, inverse_factor, propagate
from strata.quant.trellis import hadamard, turned
from strata.records import dataclass

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_BORDERS = (E2M1[1:] + E2M1[:-1]) / 2


@dataclass(frozen=True)
class FloatFormat:
    """Groups of ``group`` numbers share a scale out of ``scales``, rising."""

    group: int
    scales: Matrix

    def unit(self, values: Matrix) -> float:
        """The scale of a whole tensor, a power of two: 1 where the format has none."""
        largest = float(np.abs(values).max(initial=0))
        if self.group == 32 or largest == 0:
            return 1.0
        return float(2.0 ** np.ceil(np.log2(largest / (E2M1[-1] * self.scales[-1]))))

    def candidates(self, largest: Matrix) -> Matrix:
        """Scales [n, c] around that of which the largest number of a group is 6 times."""
        at = np.searchsorted(self.scales, largest / E2M1[-1])
        places = at[:, None] + np.arange(-2, 3)
        found: Matrix = self.scales[places.clip(0, len(self.scales) - 1)]
        return found


MXFP4 = FloatFormat(32, np.exp2(np.arange(-60, 60, dtype=np.float64)))
_e4m3 = e4m3_values().astype(np.float64)
NVFP4 = FloatFormat(16, np.unique(_e4m3[np.isfinite(_e4m3) & (_e4m3 > 0)]))


def nearest(values: Matrix) -> Matrix:
    """The E2M1 number nearest to each."""
    found: Matrix = np.copysign(E2M1[np.searchsorted(_BORDERS, np.abs(values))], values)
    return found


def rotation(width: int, group: int) -> Matrix:
    """The Hadamard matrix of a group, on the diagonal of [width, width]."""
    found: Matrix = np.kron(np.eye(width // group), hadamard(group)).astype(np.float64)
    return found


def encode(
    weights: Matrix, hessian: Matrix, format: FloatFormat, *, rotated: bool, damping: float = 0.01
) -> Matrix:
    """What ``weights`` [n, k] become, by the inputs' ``hessian`` [k, k]; with ``rotated`` as they
    are for inputs that were multiplied by ``rotation``. Every group is E2M1 numbers times one of
    the format's scales, and the tensor's where it has one."""
    return encode_scaled(weights, hessian, format, rotated=rotated, damping=damping)[0]


def encode_scaled(
    weights: Matrix, hessian: Matrix, format: FloatFormat, *, rotated: bool, damping: float = 0.01
) -> tuple[Matrix, Matrix]:
    """The same, and the scale of each group [n, k / group]."""
    if rotated:
        turn = rotation(weights.shape[1], format.group)
        weights, hessian = weights @ turn, turn.T @ hessian @ turn
    upper = inverse_factor(hessian, damping)
    spread = np.diag(upper) ** 2
    scale, unit = np.ones(len(weights)), format.unit(weights)
    scales = np.ones((len(weights), weights.shape[1] // format.group))

    def rounded(j: int, kept: Matrix) -> Matrix:
        nonlocal scale
        if j % format.group == 0:
            here = slice(j, j + format.group)
            scale = _scale(kept[:, here] / unit, spread[here], format) * unit
            scales[:, j // format.group] = scale
        return (nearest(kept[:, j] / scale) * scale)[:, None]

    return propagate(weights, upper, rounded), scales


def turned_back(values: Matrix, format: FloatFormat) -> Floats:
    """Weights [n, k] as they are for inputs that were not multiplied."""
    groups = values.reshape(-1, format.group)
    found: Floats = turned(groups, format.group).reshape(values.shape).astype(np.float32)
    return found


def _scale(group: Matrix, spread: Matrix, format: FloatFormat) -> Matrix:
    """Of each row the scale with the least error, weighed by what later columns cannot undo."""
    choices = format.candidates(np.abs(group).max(axis=1))
    near = nearest(group[:, None] / choices[..., None]) * choices[..., None]
    errors = ((near - group[:, None]) ** 2 / spread).sum(axis=2)
    best = errors.argmin(axis=1)
    found: Matrix = choices[np.arange(len(group)), best]
    return found
