"""Rows of numbers into a block format, natively and in pieces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.cores import usable_cores
from strata.errors import StrataError
from strata.quant import BlockType, QuantError, by_name, dequantize, grid
from strata.quant.encode import quantize

Raw = NDArray[np.uint8]
Floats = NDArray[np.float32]
_CODEBOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
_FLOATS = ("F32", "F16", "BF16")
_NOT_FINITE = "a value is NaN or infinite, or too large for the type"


class NotFinite(StrataError):
    """Weights hold something that is no number."""


def encodable(type: BlockType) -> bool:
    """Whether there is an encoder for the type."""
    return type.name in _FLOATS or (type.gguf_id is not None and _native.can_encode(type.gguf_id))


class Encoder:
    """Encodes with ``threads`` threads; the bytes do not depend on them. One call at a time."""

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        for name in _CODEBOOKS:
            id = by_name(name).gguf_id
            assert id is not None
            _native.set_grid(id, grid(name).view(np.uint8).reshape(-1))
        self.threads = threads or usable_cores()
        self._native = _native.Encoder(self.threads, isa)

    def encode(
        self,
        type: BlockType,
        source: BlockType,
        raw: Raw,
        shape: tuple[int, int],
        importance: Floats | None = None,
        factor: Floats | None = None,
        blocks: NDArray[np.int32] | None = None,
        decoded: Floats | None = None,
    ) -> Raw:
        """Encode a matrix [n, k] whose bytes are ``raw`` in the type ``source``.

        ``importance`` [k] weighs squared errors by column. ``factor`` [k, k], upper triangular
        with factor^T factor the inverse of the Hessian, has each value's error made up for by the
        columns behind it (GPTQ), blocks in the order ``blocks``. ``decoded`` [n, k] gets what a
        reader will see. Raises QuantError for a type that cannot be written, NotFinite for NaN and
        infinity.
        """
        rows, k = shape
        if not encodable(type):
            raise QuantError(f"there is no encoder for {type.name}")
        type.tensor_nbytes(shape)
        if source.name not in _FLOATS:
            raw, source = dequantize(source, raw, shape).reshape(-1).view(np.uint8), by_name("F32")
        raw = np.ascontiguousarray(raw).reshape(-1)
        if type.name in _FLOATS:
            check_finite(source, raw)
            return self._floats(type, source, raw, shape, decoded)
        assert type.gguf_id is not None
        assert source.gguf_id is not None
        out = np.empty(type.tensor_nbytes(shape), np.uint8)
        finite = self._native.encode(
            type.gguf_id,
            source.gguf_id,
            raw,
            rows,
            k,
            out,
            None if importance is None else np.ascontiguousarray(importance, np.float32),
            None if factor is None else np.ascontiguousarray(factor, np.float32),
            None if blocks is None else np.ascontiguousarray(blocks, np.int32),
            None if decoded is None else decoded.reshape(-1),
        )
        if not finite:
            raise NotFinite(_NOT_FINITE)
        return out

    def _floats(
        self,
        type: BlockType,
        source: BlockType,
        raw: Raw,
        shape: tuple[int, int],
        decoded: Floats | None,
    ) -> Raw:
        if type is source:
            out = raw
        else:
            out = quantize(type, dequantize(source, raw, shape)).reshape(-1)
            check_finite(type, out)
        if decoded is not None:
            decoded.reshape(shape)[:] = dequantize(type, out, shape)
        return out


def check_finite(type: BlockType, raw: Raw) -> None:
    """NotFinite unless all values of a float type are numbers."""
    bits, top = (
        (raw.view(np.uint32), 0x7F800000)
        if type.name == "F32"
        else (raw.view(np.uint16), 0x7C00 if type.name == "F16" else 0x7F80)
    )
    if np.any((bits & top) == top):
        raise NotFinite(_NOT_FINITE)
