"""A few weights of a matrix kept apart as halves: compressed sparse rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.records import dataclass


@dataclass(frozen=True)
class Sparse:
    """``starts`` [n + 1] says where in ``columns`` and ``values`` each row begins."""

    starts: NDArray[np.int32]
    columns: NDArray[np.uint16]
    values: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def put(self, dense: Floats) -> Floats:
        """A copy of ``dense`` [n, k] with these values in their places."""
        out: Floats = dense.copy()
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        out[rows, self.columns] = self.values
        return out


def sparse(mask: NDArray[np.bool_], values: NDArray[np.floating]) -> Sparse:
    """What ``mask`` says of ``values``, both [n, k] with k up to 65536."""
    starts = np.concatenate([[0], mask.sum(axis=1).cumsum()]).astype(np.int32)
    columns = np.nonzero(mask)[1].astype(np.uint16)
    return Sparse(starts, columns, values[mask].astype(np.float16))


def highest(scores: NDArray[np.floating], part: float) -> NDArray[np.bool_]:
    """The mask of the ``part`` of all that scores highest; of equal ones the first."""
    count = round(part * scores.size)
    mask = np.zeros(scores.size, np.bool_)
    mask[np.argsort(-scores.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)
