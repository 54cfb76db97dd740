"""What a block format is: a name, a size and a way to read it back as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError
from strata.records import dataclass

Raw = NDArray[np.uint8]
Floats = NDArray[np.float32]
Decode = Callable[[Raw], Floats]


class QuantError(StrataError):
    """A block format was asked for something its definition does not allow."""


@dataclass(frozen=True)
class BlockType:
    """One storage format of weights: `elements` values kept together in `nbytes` bytes.

    `decode` maps uint8 [n_blocks, nbytes] to float32 [n_blocks, elements]. `gguf_id` is the type
    number inside GGUF files, None for formats that GGUF does not have. `integer` marks plain whole
    numbers (no scale), which are data and not weights.
    """

    name: str
    gguf_id: int | None
    elements: int
    nbytes: int
    decode: Decode
    integer: bool = False

    def __repr__(self) -> str:
        return f"BlockType({self.name})"

    def tensor_nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this type; `shape` is rows first, blocks run along the last axis.

        Raises QuantError if the last axis does not hold a whole number of blocks.
        """
        if self.elements > 1 and (not shape or shape[-1] % self.elements):
            row = shape[-1] if shape else 1
            raise QuantError(
                f"{self.name} keeps {self.elements} values in a block, but a row of shape "
                f"{tuple(shape)} has {row}: choose another type for this tensor"
            )
        return prod(shape) // self.elements * self.nbytes
