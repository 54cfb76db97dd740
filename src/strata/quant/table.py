"""The one table of block formats, and decoding by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.quant import floats, fp4, iquants, kquants, legacy, ternary
from strata.quant.block_type import BlockType, Floats, QuantError, Raw

ALL: tuple[BlockType, ...] = (
    *floats.TYPES,
    *legacy.TYPES,
    *kquants.TYPES,
    *iquants.TYPES,
    *ternary.TYPES,
    *fp4.TYPES,
)

_BY_NAME = {row.name: row for row in ALL}
_BY_GGUF_ID = {row.gguf_id: row for row in ALL if row.gguf_id is not None}

# Elements decoded at a time: the temporaries of the widest decoder then stay inside a few MB.
_CHUNK_ELEMENTS = 1 << 16


def by_name(name: str) -> BlockType:
    """The row called `name` ('Q4_K', 'BF16', ...); QuantError if there is none."""
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(sorted(_BY_NAME))
        raise QuantError(f"there is no block format {name!r}; known are {known}") from None


def by_gguf_id(gguf_id: int) -> BlockType:
    """The row with this GGUF type number; QuantError if there is none."""
    try:
        return _BY_GGUF_ID[gguf_id]
    except KeyError:
        raise QuantError(f"no block format has the GGUF type number {gguf_id}") from None


def dequantize(type: BlockType, raw: Raw, shape: Sequence[int]) -> Floats:
    """Read a tensor's bytes back as numbers.

    `raw` is uint8 of any shape with exactly the tensor's bytes in file order; `shape` is rows
    first. Returns float32 of that shape. Raises QuantError if sizes do not agree. Scales that are
    NaN or infinite come through as such: a decoder does not judge weights.
    """
    expected = type.tensor_nbytes(shape)
    if raw.dtype != np.uint8 or raw.size != expected:
        raise QuantError(
            f"a {type.name} tensor of shape {tuple(shape)} takes {expected} bytes, "
            f"but {raw.size} values of type {raw.dtype} were given"
        )
    blocks = np.ascontiguousarray(raw).reshape(-1, type.nbytes)
    out = np.empty((len(blocks), type.elements), dtype=np.float32)
    step = max(1, _CHUNK_ELEMENTS // type.elements)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            out[start : start + step] = type.decode(blocks[start : start + step])
    return out.reshape(tuple(shape))
