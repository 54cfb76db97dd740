"""A weight that a directory keeps in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.tensor_info import TensorInfo
from strata.quant import BlockType, QuantError, by_name, dequantize
from strata.quant.block_type import Raw
from strata.records import dataclass

Arrays = Mapping[str, NDArray[Any]]
"""The parts of a weight, whole, by what they are."""

ReadSmall = Callable[[TensorInfo], bytes]
ReadPart = Callable[[TensorInfo], NDArray[np.uint8]]

_ROWS = 256
"""Rows that are put together at a time."""

_WHOLE_NUMBERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "I64": "<i8"}
FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class ForeignWeight:
    """``info`` is the tensor as it is presented (its offset means nothing), ``parts`` what it is
    made of, ``rows`` puts some rows of it together from these. ``unused`` are names of tensors that
    came with it and say nothing more; ``step`` rows are put together at a time."""

    info: TensorInfo
    parts: Mapping[str, TensorInfo]
    rows: Callable[[Arrays, int, int], Raw]
    unused: tuple[str, ...] = ()
    step: int = _ROWS

    def load(self, read: ReadPart) -> Arrays:
        """All parts, floating-point ones as float32."""
        return {key: _array(info, read(info)) for key, info in self.parts.items()}

    def pieces(self, arrays: Arrays, first: int, last: int) -> Iterator[Raw]:
        """The bytes of rows ``first`` to ``last``, some at a time. ForeignFormatError where what is
        stored is not what config.json says."""
        for start in range(first, last, self.step):
            try:
                piece = self.rows(arrays, start, min(start + self.step, last))
            except (QuantError, IndexError) as error:
                raise ForeignFormatError(
                    f"tensor {shown(self.info.name)} cannot be repacked: {error}"
                ) from None
            yield np.ascontiguousarray(piece).reshape(-1)


def presented(name: str, shape: tuple[int, int], type: str, part: TensorInfo) -> TensorInfo:
    """The tensor that parts stand for."""
    kind = by_name(type)
    return TensorInfo(name, shape, kind, part.path, part.offset, kind.tensor_nbytes(shape))


def check(
    info: TensorInfo, types: tuple[str, ...], shape: tuple[int, ...] | None = None
) -> TensorInfo:
    """``info``, or ForeignFormatError unless it has such a type and shape."""
    if info.type.name not in types:
        raise ForeignFormatError(
            f"tensor {shown(info.name)} is {info.type.name}, not {' or '.join(types)}"
        )
    if shape is not None and info.shape != shape:
        raise ForeignFormatError(f"tensor {shown(info.name)} has shape {info.shape}, not {shape}")
    return info


def part(stored: Mapping[str, TensorInfo], name: str) -> TensorInfo:
    """A part that has to be there."""
    if name not in stored:
        raise ForeignFormatError(f"tensor {shown(name)} is missing")
    return stored[name]


def number(settings: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number that config.json states."""
    value = settings.get(key, default)
    if type(value) is not int:
        raise ForeignFormatError(f"'{key}' is {shown(value)}, not a whole number")
    return value


def _array(info: TensorInfo, raw: NDArray[np.uint8]) -> NDArray[Any]:
    kind: BlockType = info.type
    if kind.name in _WHOLE_NUMBERS:
        return raw.view(_WHOLE_NUMBERS[kind.name]).reshape(info.shape)
    return dequantize(kind, raw, info.shape)
