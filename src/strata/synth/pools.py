"""Random weights at the speed of the disk: one pool of blocks for each format and row width,
made once and written again and again from shifting offsets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from strata.quant import BlockType
from strata.quant.encode import quantize
from strata.synth.outline import SynthTensor
from strata.synth.recipes import is_matrix
from strata.synth.routing import Routing

# Elements of a pool, about. The number of its blocks is a prime, so that a row, which is a round
# number of blocks, hardly ever begins twice at the same place.
_POOL_ELEMENTS = 1 << 20
_CHUNK_BYTES = 8 << 20

Bytes = NDArray[np.uint8]


class Pools:
    """Gives tensors their bytes: normal values with a deviation of 1 / sqrt(row width), so that a
    product of normal activations is normal again and nothing grows from layer to layer."""

    def __init__(self, seed: int, routing: Routing | None = None) -> None:
        self._routing = routing
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._pools: dict[tuple[str, int], Bytes] = {}

    def chunks(self, tensor: SynthTensor) -> Iterable[Bytes]:
        """The bytes of a tensor, in pieces."""
        rows = None if self._routing is None else self._routing.rows(tensor.name, tensor.shape)
        if rows is not None:
            return _repeated(quantize(tensor.type, rows).reshape(-1), tensor)
        if not is_matrix(tensor.shape):
            values = np.broadcast_to(np.asarray(tensor.fill, np.float32), tensor.shape)
            floats = np.ascontiguousarray(values)
            return (quantize(tensor.type, floats).reshape(-1),)
        return self._random_bytes(tensor)

    def _random_bytes(self, tensor: SynthTensor) -> Iterator[Bytes]:
        pool = self._pool(tensor.type, tensor.shape[-1])
        left = tensor.type.tensor_nbytes(tensor.shape)
        blocks = len(pool) // tensor.type.nbytes
        at = int(self._random.integers(blocks)) * tensor.type.nbytes
        while left:
            piece = pool[at : at + min(left, _CHUNK_BYTES)]
            yield piece
            left -= len(piece)
            at = (at + len(piece)) % len(pool)

    def _pool(self, type: BlockType, width: int) -> Bytes:
        key = (type.name, width)
        if key not in self._pools:
            blocks = _prime_below(_POOL_ELEMENTS // type.elements)
            values = self._random.standard_normal(blocks * type.elements, np.float32)
            values *= np.float32(1 / math.sqrt(width))
            self._pools[key] = quantize(type, values).reshape(-1)
        return self._pools[key]


def _repeated(piece: Bytes, tensor: SynthTensor) -> Iterator[Bytes]:
    left = tensor.type.tensor_nbytes(tensor.shape)
    while left:
        yield piece[:left]
        left -= min(left, len(piece))


def _prime_below(number: int) -> int:
    """The largest prime up to ``number``, which is at least 2."""
    while any(number % d == 0 for d in range(2, math.isqrt(number) + 1)):
        number -= 1
    return number
