"""Which type for which tensor: the least loss within a size (a multiple-choice knapsack)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.records import dataclass
from strata.sizes import format_size

_MOST_POINTS = 1 << 15


@dataclass(frozen=True)
class Choice:
    """One way to write a tensor: its bytes and what is lost."""

    label: str
    nbytes: int
    loss: float


class NoRoom(UsageError):
    """Not even the smallest choices fit."""


def allocate(tensors: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """A choice for each tensor, of ``budget`` bytes together at most, with the least loss in sum.

    All sums that may be best are kept, tensor after tensor, sizes and losses together: exact while
    these are at most 32768, and then one in each of so many ranges of size, so that the loss is
    that of a budget smaller by a range (a 32768th of it) a tensor at worst. Raises NoRoom.
    """
    least = [min(c.nbytes for c in choices) for choices in tensors]
    if sum(least) > budget:
        raise NoRoom(
            f"that is too small: the smallest types take {format_size(sum(least))}; "
            f"{format_size(max(budget, 0))} are left for them"
        )
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    back: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    rest = sum(least)
    for choices, smallest in zip(tensors, least, strict=True):
        rest -= smallest
        all_sizes = np.concatenate([sizes + c.nbytes for c in choices])
        all_losses = np.concatenate([losses + c.loss for c in choices])
        parents = np.tile(np.arange(len(sizes), dtype=np.int32), len(choices))
        picks = np.repeat(np.arange(len(choices), dtype=np.int32), len(sizes))
        order = np.lexsort((all_losses, all_sizes))
        order = order[all_sizes[order] + rest <= budget]
        best = np.minimum.accumulate(all_losses[order])
        front = np.concatenate([[True], best[1:] < best[:-1]])
        order = order[front]
        if len(order) > _MOST_POINTS:
            # The last of each range of sizes has the least loss of it.
            place = all_sizes[order] * _MOST_POINTS // (int(all_sizes[order[-1]]) + 1)
            order = order[np.append(place[1:] != place[:-1], True)]
        sizes, losses = all_sizes[order], all_losses[order]
        back.append((parents[order], picks[order]))
    at = int(losses.argmin())
    chosen = []
    for choices, (parents, picks) in zip(reversed(tensors), reversed(back), strict=True):
        chosen.append(choices[picks[at]])
        at = int(parents[at])
    return chosen[::-1]
