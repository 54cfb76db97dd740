"""From a Segment's Weights to bytes: the one place that applies row ranges and transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError
from strata.formats import ModelFile
from strata.formats.disk_file import DiskFile
from strata.formats.fp8 import BLOCK as FP8_BLOCK
from strata.program import Weight
from strata.quant import BlockType, by_name, dequantize
from strata.records import dataclass

_MAPS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "add_one": lambda x: x + np.float32(1),
    "negative_exp": lambda x: -np.exp(x),
}
_FLOATS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


class WeightError(StrataError):
    """A weight that the file does not hold in the shape or type that the model needs."""


class WeightReadError(StrataError):
    """The file failed while weights were read from it, or is not the one that was opened."""


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix [n, k] lies in its file, for backends that read it themselves.

    ``storage`` is ``rows`` (row after row in the block type, from ``offset`` on), ``columns``
    (plain numbers in lines of ``stored_width``; our rows are columns from ``first_column`` on) or
    ``scaled`` (rows of 8-bit floats, their scales in ``factors``: float32, of 1, n or n / 128
    (rounded up) rows and 1 or k / 128 columns).
    """

    file: DiskFile
    offset: int
    storage: Literal["rows", "columns", "scaled"] = "rows"
    stored_width: int = 0
    first_column: int = 0
    factors: NDArray[np.float32] | None = None


class WeightSource:
    """Reads Weights from an opened model file."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file

    def type(self, weight: Weight) -> BlockType:
        """Block type in which ``raw`` will give the weight."""
        stored = self._file.tensors[weight.source].type
        return by_name("F32") if weight.transform in _MAPS else stored

    def place(self, weight: Weight) -> MatrixPlace | None:
        """Where a matrix is; None for one that only ``raw`` can give."""
        info = self._file.tensors[weight.source]
        if weight.transform in _MAPS or len(weight.shape) < 2:
            return None
        stored = self._file.stored(weight.source)
        # Whole entries of the first axis: so many rows of the matrix that they are.
        first = 0 if weight.rows is None else weight.rows[0] * prod(weight.shape[1:-1])
        rows, width = weight.matrix
        if weight.transform == "transpose":
            self._check_transposable(weight)
            return MatrixPlace(stored.file, stored.offset, "columns", info.shape[1], first)
        if stored.factors is not None:
            factors = _factors_from(stored.factors, first, rows, prod(info.shape[:-1]))
            offset = stored.offset + first * width
            return MatrixPlace(stored.file, offset, "scaled", factors=factors)
        row = info.type.tensor_nbytes((width,))
        return MatrixPlace(stored.file, stored.offset + first * row)

    def expert_places(self, weight: Weight) -> list[MatrixPlace] | None:
        """Where each matrix of a weight of three axes is; None for one that only ``raw`` gives."""
        count, n, k = weight.shape
        if weight.experts:
            alone = [Weight(weight.name, (n, k), s, weight.each) for s in weight.experts]
            places = [self.place(w) for w in alone]
            return [place for place in places if place is not None]
        info, stored = self._file.tensors[weight.source], self._file.stored(weight.source)
        first = 0 if weight.each is None else weight.each[0]
        if weight.transform == "transpose":
            self._check_transposable(weight)
            width = info.shape[2]
            step = k * info.type.tensor_nbytes((width,))
            offsets = (stored.offset + e * step for e in range(count))
            return [MatrixPlace(stored.file, at, "columns", width, first) for at in offsets]
        row = info.type.tensor_nbytes((k,))
        starts = (e * info.shape[1] + first for e in range(count))
        return [MatrixPlace(stored.file, stored.offset + start * row) for start in starts]

    def _check_transposable(self, weight: Weight) -> None:
        info = self._file.tensors[weight.source]
        if info.type.name not in _FLOATS:
            raise WeightError(
                f"tensor '{info.name}': {info.type.name} cannot be transposed; "
                f"use a file with F32, F16 or BF16 for this tensor"
            )

    def raw(self, weight: Weight) -> NDArray[np.uint8]:
        """The weight's bytes in its block type, row after row."""
        info = self._file.tensors[weight.source]
        if weight.experts:
            alone = (Weight(weight.name, weight.shape[1:], s, weight.each) for s in weight.experts)
            return np.concatenate([self.raw(w) for w in alone])
        if weight.transform == "transpose":
            self._check_transposable(weight)
            stored = self._file.read(info.name).view(_FLOATS[info.type.name]).reshape(info.shape)
            rows, part = np.swapaxes(stored, -1, -2), weight.rows or weight.each
            rows = rows if part is None else rows[..., slice(*part), :]
            return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        if weight.each is not None:
            every = self._file.read(info.name).reshape(*info.shape[:2], -1)
            return np.ascontiguousarray(every[:, slice(*weight.each)]).reshape(-1)
        raw = self._file.read(info.name, weight.rows)
        if weight.transform in _MAPS:
            mapped = _MAPS[weight.transform](dequantize(info.type, raw, weight.shape))
            as_bytes: NDArray[np.uint8] = mapped.reshape(-1).view(np.uint8)
            return as_bytes
        return raw

    def expert(self, weight: Weight, number: int) -> NDArray[np.uint8]:
        """One matrix of a weight of three axes that is one tensor, as ``raw`` has it."""
        info = self._file.tensors[weight.source]
        stored = self._file.read(info.name, (number, number + 1))
        if weight.transform == "transpose":
            self._check_transposable(weight)
            rows = stored.view(_FLOATS[info.type.name]).reshape(info.shape[1:]).T
        else:
            rows = stored.reshape(info.shape[1], -1)
        rows = rows if weight.each is None else rows[slice(*weight.each)]
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)

    def floats(self, weight: Weight) -> NDArray[np.float32]:
        """The weight as float32, in its shape."""
        return dequantize(self.type(weight), self.raw(weight), weight.shape)


LENT = "lent:"
"""What stands before the ``source`` of weights that another file lends."""


class BorrowingSource(WeightSource):
    """Reads Weights of one file, and those that it borrows of another one."""

    def __init__(self, file: ModelFile, lender: ModelFile) -> None:
        super().__init__(file)
        self._lender = WeightSource(lender)

    def type(self, weight: Weight) -> BlockType:
        """See WeightSource."""
        lent = _lent(weight)
        return super().type(weight) if lent is None else self._lender.type(lent)

    def place(self, weight: Weight) -> MatrixPlace | None:
        """See WeightSource."""
        lent = _lent(weight)
        return super().place(weight) if lent is None else self._lender.place(lent)

    def raw(self, weight: Weight) -> NDArray[np.uint8]:
        """See WeightSource."""
        lent = _lent(weight)
        return super().raw(weight) if lent is None else self._lender.raw(lent)


def _lent(weight: Weight) -> Weight | None:
    """As the other file has it; None for one of the file itself."""
    if not weight.source.startswith(LENT):
        return None
    return replace(weight, source=weight.source.removeprefix(LENT))


def _factors_from(
    factors: NDArray[np.float32], first: int, rows: int, all_rows: int
) -> NDArray[np.float32]:
    """The scales of ``rows`` rows from ``first`` on of a tensor of ``all_rows``."""
    if len(factors) == 1 or rows == all_rows:
        return factors
    if len(factors) < all_rows and first % FP8_BLOCK == 0:
        return factors[first // FP8_BLOCK :][: -(-rows // FP8_BLOCK)]
    each = 1 if len(factors) == all_rows else FP8_BLOCK
    return np.ascontiguousarray(factors[np.arange(first, first + rows) // each])
