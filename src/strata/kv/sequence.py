"""The state of one sequence: how many positions are computed, and in which blocks they lie."""

from __future__ import annotations

from dataclasses import field

from strata.backends.base import KV_BLOCK
from strata.program import StateGroup
from strata.records import dataclass

BlockTable = list[int]
"""Block numbers of one sequence in one group. Of paged state entry ``i`` holds positions
``i * KV_BLOCK ..``; NO_BLOCK stands for one that was given back. Of recurrent state there are two
entries, slots: the state as it is, and where the next step writes."""


def blocks_for(positions: int) -> int:
    """Blocks that hold ``positions`` positions."""
    return -(-positions // KV_BLOCK)


def seen_blocks(group: StateGroup, length: int) -> tuple[range, range]:
    """The blocks of a paged group, by their place in a table, that going on behind ``length``
    positions sees: those of the beginning that lie before a gap, and those up to the end."""
    first = min(group.first_seen(length) // KV_BLOCK, blocks_for(length))
    return range(min(first, blocks_for(group.beginning))), range(first, blocks_for(length))


@dataclass
class SequenceState:
    """``length`` positions are computed. ``tables`` has a block table for each group, which may
    have blocks beyond, for what comes next; ``nodes`` are those of the blocks that are full and
    known. ``loaded`` blocks beyond ``length`` are filled already and count when all are."""

    tables: list[BlockTable]
    length: int = 0
    nodes: list[int] = field(default_factory=list)
    loaded: int = 0


@dataclass(frozen=True)
class Branch:
    """Blocks of a branch of a draft: for each group those that take the place of the sequence's own
    from number ``first`` on."""

    first: int
    tables: tuple[BlockTable, ...]
