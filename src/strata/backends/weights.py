"""From a Segment's Weights to bytes: the one place that applies row ranges and transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError
from strata.formats import ModelFile
from strata.program import Weight
from strata.quant import BlockType, by_name, dequantize

_FLOATS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


class WeightError(StrataError):
    """A weight that the file does not hold in the shape or type that the model needs."""


class WeightSource:
    """Reads Weights from an opened model file."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file

    def type(self, weight: Weight) -> BlockType:
        """Block type in which ``raw`` will give the weight."""
        stored = self._file.tensors[weight.source].type
        return by_name("F32") if weight.transform == "add_one" else stored

    def raw(self, weight: Weight) -> NDArray[np.uint8]:
        """The weight's bytes in its block type, row after row."""
        info = self._file.tensors[weight.source]
        if weight.transform == "transpose":
            if info.type.name not in _FLOATS:
                raise WeightError(
                    f"tensor '{info.name}': {info.type.name} cannot be transposed; "
                    f"use a file with F32, F16 or BF16 for this tensor"
                )
            stored = self._file.read(info.name).view(_FLOATS[info.type.name]).reshape(info.shape)
            rows = stored.T if weight.rows is None else stored.T[slice(*weight.rows)]
            return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        raw = self._file.read(info.name, weight.rows)
        if weight.transform == "add_one":
            shifted = dequantize(info.type, raw, weight.shape) + np.float32(1)
            as_bytes: NDArray[np.uint8] = shifted.reshape(-1).view(np.uint8)
            return as_bytes
        return raw

    def floats(self, weight: Weight) -> NDArray[np.float32]:
        """The weight as float32, in its shape."""
        return dequantize(self.type(weight), self.raw(weight), weight.shape)
