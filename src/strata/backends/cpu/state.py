"""What layers keep of sequences, in native memory: a buffer of blocks for each group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.kv_types import KV_TYPES, KVCodec, KVType, bounds_nbytes
from strata.program import LayerState, PagedKV, Recurrent, StateGroup, state_groups

_NUMBERS = {kept.name: number for number, kept in enumerate(KV_TYPES)}
"""Of codecs, in csrc/kernels/step_kernels.h."""


class NativeState:
    """A StateCache; ``native`` is what nodes work with. ``kv_type`` is made of rows of KV_TYPES.
    With ``slots`` memory has so many blocks of the group that keeps all positions, and a file in
    ``directory`` the others."""

    def __init__(
        self,
        state: Sequence[LayerState],
        blocks: Sequence[int],
        kv_type: KVType,
        slots: int = 0,
        directory: str = "",
    ) -> None:
        self.groups: tuple[StateGroup, ...] = state_groups(state)
        self.blocks = tuple(blocks)
        self.slots = slots if any(map(keeps_all, self.groups)) else 0
        self.native = _native.StateStore(
            [_kept(layer, kv_type.of(number)) for number, layer in enumerate(state)],
            [
                (
                    *(group.layers, group.window, group.beginning, group.recurrent),
                    *(count, self._slots(group, slots)),
                )
                for group, count in zip(self.groups, self.blocks, strict=True)
            ],
            directory,
        )

    @staticmethod
    def _slots(group: StateGroup, slots: int) -> int:
        return slots if keeps_all(group) else 0

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""
        return int(self.native.nbytes)

    def block_nbytes(self, group: int) -> int:
        """Bytes of a block of a group."""
        return int(self.native.block_nbytes(group))

    def close(self) -> None:
        """Free it; nothing can be done with it afterwards."""
        del self.native

    def copy(self, group: int, source: int, target: int) -> None:
        """See StateCache."""
        self.native.copy(group, source, target)

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        """See StateCache."""
        self.native.read(group, block, out)

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        """See StateCache."""
        self.native.write(group, block, data)


def keeps_all(group: StateGroup) -> bool:
    """Whether it has keys and values of all positions, which need not all be in memory."""
    return not group.recurrent and not group.window and not group.index


def tier_bytes(
    kv_type: KVType, state: Sequence[LayerState], groups: Sequence[StateGroup], blocks: int
) -> tuple[int, int]:
    """Bytes of memory beside slots, and of the file, where not all of ``blocks`` are in memory;
    zeros for a model that has no such group."""
    if not groups or not keeps_all(groups[0]):
        return 0, 0
    parts = [
        kv_type.layer_nbytes(state, number) - bounds_nbytes(state[number])
        for number in groups[0].layers
    ]
    return _native.StateStore.ring_bytes(parts), _native.StateStore.file_bytes(parts, blocks)


def _kept(
    layer: LayerState, codecs: tuple[KVCodec, KVCodec]
) -> tuple[int, int, int, bool, int, int, int, bool, bool]:
    """(kv_heads, k_dim, v_dim, v_in_k, floats, types of keys and values, whether there are bounds
    of keys, whether rows see some blocks alone), zeros for what a layer does not keep."""
    if isinstance(layer, PagedKV):
        keys, values = (_NUMBERS[codec.name] for codec in codecs)
        shape = layer.kv_heads, layer.k_dim, layer.v_dim, layer.v_in_k
        return *shape, 0, keys, values, layer.read > 0, layer.chosen
    floats = layer.elements if isinstance(layer, Recurrent) else 0
    return 0, 0, 0, False, floats, 0, 0, False, False
