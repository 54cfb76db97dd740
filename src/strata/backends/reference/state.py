"""What the oracle keeps of sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    KV_BLOCK,
)
from strata.backends.kv_types import F32, KVType
from strata.program import (
    LayerState,
    PagedKV,
    Recurrent,
    StateGroup,
    state_groups,
)

Floats = NDArray[np.float32]


class ReferenceState:
    """What layers keep of sequences, float32; keys and values are rounded as ``kv_type`` does."""

    def __init__(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType = F32
    ) -> None:
        self.state, self.kv_type = tuple(state), kv_type
        self.groups: tuple[StateGroup, ...] = state_groups(state)
        self.blocks = tuple(blocks)
        self._arrays: dict[int, list[Floats]] = {}
        self._all = [self._room(g, n) for g, n in zip(self.groups, self.blocks, strict=True)]

    def _room(self, group: StateGroup, blocks: int) -> Floats:
        """Memory of a group, [blocks, numbers]; the layers' arrays are views of it."""
        shapes = {number: _shapes(self.state[number]) for number in group.layers}
        size = sum(math.prod(shape) for layer in shapes.values() for shape in layer)
        room = np.zeros((blocks, size), np.float32)
        start = 0
        for number, layer in shapes.items():
            self._arrays[number] = []
            for shape in layer:
                end = start + math.prod(shape)
                self._arrays[number].append(room[:, start:end].reshape(blocks, *shape))
                start = end
        return room

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""
        return sum(room.nbytes for room in self._all)

    def block_nbytes(self, group: int) -> int:
        """Bytes of a block of a group."""
        return int(4 * self._all[group].shape[1])

    def copy(self, group: int, source: int, target: int) -> None:
        """See StateCache."""
        self._block(group, target)[:] = self._block(group, source)

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        """See StateCache."""
        out[:] = self._block(group, block).view(np.uint8)

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        """See StateCache."""
        self._block(group, block).view(np.uint8)[:] = data

    def _block(self, group: int, block: int) -> Floats:
        if not 0 <= group < len(self.groups) or not 0 <= block < self.blocks[group]:
            raise IndexError(f"there is no block {block} of group {group}")
        out: Floats = self._all[group][block]
        return out

    def group_of(self, layer: int) -> int:
        """Number of the group that a layer is in."""
        return next(n for n, group in enumerate(self.groups) if layer in group.layers)

    def kv(self, layer: int) -> tuple[Floats, Floats]:
        """Keys [blocks, KV_BLOCK, kv_heads, k_dim] of a layer, and its values."""
        kept = self.state[layer]
        assert isinstance(kept, PagedKV)
        keys, *values = self._arrays[layer]
        return keys, values[0] if values else keys[..., : kept.v_dim]

    def recurrent(self, layer: int) -> list[Floats]:
        """The arrays of a recurrent layer, [slots, *shape] each."""
        return self._arrays[layer]


def _shapes(layer: LayerState) -> list[tuple[int, ...]]:
    """Of the arrays that a block, or a slot, has for a layer."""
    if isinstance(layer, Recurrent):
        return list(layer.shapes)
    assert isinstance(layer, PagedKV)
    dims = (layer.k_dim,) if layer.v_in_k else (layer.k_dim, layer.v_dim)
    return [(KV_BLOCK, layer.kv_heads, dim) for dim in dims]
