"""A model whose tensors are made while they are read, presented as a GGUF file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats import ModelFile, TensorInfo
from strata.formats.disk_file import DiskFile
from strata.formats.header_only import HeaderOnly
from strata.quant import by_name
from strata.quantizer.sources import SourceTensor

Raw = NDArray[np.uint8]
_PLAIN = by_name("F32")
_NUMBERS = 1 << 16
_WORK = 64
"""Numbers that are made at a time, and bytes that making one takes at most."""


class Presented(HeaderOnly):
    """``keys`` is the metadata as plain values, ``values`` the same as a writer takes it;
    ``changes`` differs where what is made of the same files does."""

    changes = ""

    def __init__(
        self,
        file: ModelFile,
        keys: Mapping[str, Any],
        values: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        super().__init__("gguf", file.path, keys, tensors)
        self.keys = keys
        self.values = values
        self._opened = file

    @property
    def files(self) -> tuple[DiskFile, ...]:
        """Those from which it is made."""
        return self._opened.files

    def forget_cached(self) -> None:
        """As the file behind it does."""
        self._opened.forget_cached()

    def readinto(
        self, name: str, buffer: NDArray[np.uint8], rows: tuple[int, int] | None = None
    ) -> None:
        """As a GGUF file is read, by entries of the first axis."""
        info = self._info(name)
        each = prod(info.shape[1:-1])
        first, last = (0, info.shape[0]) if rows is None else rows
        if len(info.shape) == 1:
            whole = self.matrix_rows(name, 0, 1)
            size = info.type.tensor_nbytes((1,))
            buffer.reshape(-1)[:] = whole[size * first : size * last]
        else:
            buffer.reshape(-1)[:] = self.matrix_rows(name, first * each, last * each)

    @abstractmethod
    def matrix_rows(self, name: str, first: int, last: int) -> Raw:
        """Bytes of these rows of the matrix that all axes but the last make."""

    @abstractmethod
    def held(self, name: str) -> int:
        """Bytes that stay while rows of a tensor are read."""


def changed_infos(
    file: ModelFile, tensors: Iterable[SourceTensor], changed: Collection[str]
) -> dict[str, TensorInfo]:
    """The index of a file in which the changed tensors are 32-bit floats."""
    infos, offset = {}, 0
    for tensor in tensors:
        type = _PLAIN if tensor.name in changed else tensor.type
        nbytes = type.tensor_nbytes(tensor.shape)
        infos[tensor.name] = TensorInfo(tensor.name, tensor.shape, type, file.path, offset, nbytes)
        offset += nbytes
    return infos


def in_pieces(
    first: int, last: int, k: int, make: Callable[[int, int], NDArray[np.floating[Any]]]
) -> NDArray[np.float32]:
    """Rows first to last of k numbers, which ``make`` gives some at a time: what making takes does
    not grow with their number. See ``piece_nbytes``."""
    out = np.empty((last - first, k), np.float32)
    each = max(1, _NUMBERS // k)
    for begin in range(first, last, each):
        end = min(begin + each, last)
        out[begin - first : end - first] = make(begin, end)
    return out


def piece_nbytes(k: int) -> int:
    """Bytes that ``in_pieces`` takes beside the rows."""
    return _WORK * max(k, _NUMBERS)
