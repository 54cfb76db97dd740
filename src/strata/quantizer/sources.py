"""Where the weights come from: tensors by their GGUF names, row by row, and what the file says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats import ModelFile
from strata.formats.gguf import stored_values
from strata.quant import BlockType
from strata.records import dataclass

Raw = NDArray[np.uint8]
_OF_PARTS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor by its GGUF name. ``rows(a, b)`` are the bytes, in the block type, of rows a to b of
    the matrix that all its axes but the last make; ``held`` bytes stay while they are read."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    rows: Callable[[int, int], Raw]
    held: int = 0

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and width."""
        return math.prod(self.shape[:-1]), self.shape[-1]


@dataclass(frozen=True)
class Source:
    """A model to be written again. ``values`` are what a GGUF writer takes, ``keys`` the same as
    plain values. ``identity`` differs where the bytes may."""

    keys: Mapping[str, Any]
    values: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    identity: str
    forget: Callable[[], None]


def gguf_source(file: ModelFile) -> Source:
    """The model of a GGUF file, in one part or many: every key but those of parts is carried."""
    stored = stored_values(file.files[0])
    values = {key: value for key, value in stored.items() if key not in _OF_PARTS}
    tensors = {name: _stored_tensor(file, name) for name in file.tensors}
    return Source(file.metadata, values, tensors, identity(file), file.forget_cached)


def identity(file: ModelFile) -> str:
    """Differs where any of the files does: their sizes, times and numbers."""
    seen = [(f.path.name, f.identity) for f in file.files]
    return sha256(repr(seen).encode()).hexdigest()


def _stored_tensor(file: ModelFile, name: str) -> SourceTensor:
    info = file.tensors[name]
    stored = file.stored(name)
    row = info.type.tensor_nbytes((info.shape[-1],)) if info.shape else info.nbytes

    def rows(first: int, last: int) -> Raw:
        out = np.empty((last - first) * row, np.uint8)
        stored.file.readinto(stored.offset + first * row, out.data)
        return out

    return SourceTensor(name, info.shape, info.type, rows)
