"""What a model keeps of a sequence: by layer, and in groups that are kept for the same time.

A layer's state is one of three kinds. ``PagedKV`` grows with positions and lives in blocks of
``KV_BLOCK`` of them; ``Recurrent`` has a fixed size whatever the length; ``Shared`` keeps nothing
of its own and reads another layer's keys and values.

Layers that keep paged state for the same time form one **group**, which has a pool of blocks and,
for every sequence, a block table of its own (as in vLLM's hybrid KV cache manager). All recurrent
layers together form one group whose blocks are **slots**: one holds the whole state of a sequence
at one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from strata.program.program import ProgramError
from strata.records import dataclass


@dataclass(frozen=True)
class PagedKV:
    """Keys and values of an attention layer, for every position that can still be seen.

    ``window`` > 0: a row sees only the last so many positions, its own among them, and what has
    left the window is given back, but for the first ``beginning`` positions. ``v_in_k``: no values
    are kept, the value is the first ``v_dim`` elements of the key (latent attention in its absorbed
    form). ``read`` > 0: of all positions a row sees so many, whole blocks, chosen by bounds of
    their keys that are kept for that. ``chosen``: of all positions a row sees those that keys of an
    ``index`` choose, which are kept apart and attended to by nobody.
    """

    kv_heads: int
    k_dim: int
    v_dim: int
    window: int = 0
    v_in_k: bool = False
    beginning: int = 0
    read: int = 0
    chosen: bool = False
    index: bool = False

    def __post_init__(self) -> None:
        if min(self.kv_heads, self.k_dim, self.v_dim) < 1 or min(self.window, self.beginning) < 0:
            raise ProgramError(f"impossible KV state: {self}")
        if self.beginning and not self.window:
            raise ProgramError(f"all positions are kept, not only a beginning: {self}")
        if self.read and self.window:
            raise ProgramError(f"blocks are chosen of all positions, not of a window: {self}")
        if self.window and (self.chosen or self.index):
            raise ProgramError(f"keys are chosen of all positions, not of a window: {self}")
        if self.v_in_k and self.v_dim > self.k_dim:
            raise ProgramError(f"values of {self.v_dim} are no part of keys of {self.k_dim}")

    @property
    def elements(self) -> int:
        """Numbers kept for a position."""
        return self.kv_heads * (self.k_dim + (0 if self.v_in_k else self.v_dim))


@dataclass(frozen=True)
class Recurrent:
    """State of a fixed size for a sequence: float32 arrays of these shapes, zeros at first."""

    shapes: tuple[tuple[int, ...], ...]

    @property
    def elements(self) -> int:
        """Numbers kept for a sequence."""
        return sum(prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Shared:
    """The keys and values of layer ``layer``, which comes before and keeps them."""

    layer: int


LayerState = PagedKV | Recurrent | Shared


@dataclass(frozen=True)
class StateGroup:
    """Layers (numbers in ``Model.state``) whose state is kept for the same time.

    ``window`` is that of its paged layers, 0 where all positions are kept, and ``beginning`` the
    first positions that are kept beside it. The blocks of a ``recurrent`` group are slots, of which
    a sequence has one. Those of an ``index`` hold keys that choose other keys.
    """

    layers: tuple[int, ...]
    window: int = 0
    recurrent: bool = False
    beginning: int = 0
    index: bool = False

    def first_seen(self, position: int) -> int:
        """The first position that a row at ``position`` sees, the ``beginning`` aside where a gap
        lies behind it."""
        reaches = not self.window or position < self.window + self.beginning
        return 0 if reaches else position - self.window + 1


def state_groups(state: Sequence[LayerState]) -> tuple[StateGroup, ...]:
    """The groups of a model: what keeps all positions first, then what chooses among them, then
    windows, the largest first, and recurrent state last. Empty for a model that keeps nothing."""
    windows: dict[tuple[int, int, bool], list[int]] = {}
    recurrent = []
    for number, layer in enumerate(state):
        if isinstance(layer, PagedKV):
            windows.setdefault((layer.window, layer.beginning, layer.index), []).append(number)
        elif isinstance(layer, Recurrent):
            recurrent.append(number)
        elif not (layer.layer < number and isinstance(state[layer.layer], PagedKV)):
            raise ProgramError(
                f"layer {number} shares state that layer {layer.layer} does not keep"
            )
    order = sorted(windows, key=lambda kept: (kept[0] > 0, kept[2], -kept[0], -kept[1]))
    groups = [
        StateGroup(tuple(windows[kept]), window=kept[0], beginning=kept[1], index=kept[2])
        for kept in order
    ]
    if recurrent:
        groups.append(StateGroup(tuple(recurrent), recurrent=True))
    return tuple(groups)
