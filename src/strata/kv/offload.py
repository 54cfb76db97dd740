"""Where full blocks may be kept beyond the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from strata.records import dataclass

if TYPE_CHECKING:
    from strata.kv.store import PrefixStore


@dataclass(frozen=True)
class BlockRun:
    """Blocks of one group that follow each other: of a sequence's blocks those from number
    ``first``. Of a recurrent group the slot with the state at the end of block ``first``."""

    group: int
    first: int
    blocks: tuple[int, ...]


class Offload(Protocol):
    """Keeps what full blocks hold, and brings it back. Sees tokens and block numbers. ``stores``
    are where that is, one for each group."""

    stores: tuple[PrefixStore, ...]

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """Up to which block of ``tokens`` a sequence that has ``first`` of them can be brought
        from here, at most to ``most``; ``first`` if nowhere."""

    def is_tried(self) -> bool:
        """Whether what is found is to be loaded: it is asked once each time, and after loading was
        slower than computing some of these times pass."""

    def load(self, tokens: Sequence[int], run: BlockRun) -> int:
        """Fill the blocks of a run; how many of them, from the start, now hold what they should."""

    def save(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """Keep full blocks, which are held here until that is done."""

    def save_now(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """Keep full blocks before coming back, because they are about to be given up."""

    def pays(self, blocks: int) -> bool:
        """Whether keeping so many blocks and bringing them back is faster than computing them."""

    def collect(self) -> None:
        """Let go of the blocks that are done."""

    def give_back(self) -> bool:
        """Let go of all blocks now, done or not; whether there were any."""

    def blocks(self, group: int) -> list[int]:
        """Blocks of a group that are held here."""

    def close(self) -> None:
        """Finish within some seconds; nothing is kept afterwards."""


class NoOffload:
    """No such place."""

    stores: tuple[PrefixStore, ...] = ()

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """Nowhere."""
        return first

    def is_tried(self) -> bool:
        """There is nothing."""
        return False

    def load(self, tokens: Sequence[int], run: BlockRun) -> int:
        """None."""
        return 0

    def save(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """Nothing is done."""

    def save_now(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """Nothing is done."""

    def pays(self, blocks: int) -> bool:
        """It cannot be done."""
        return False

    def collect(self) -> None:
        """There are none."""

    def give_back(self) -> bool:
        """There were none."""
        return False

    def blocks(self, group: int) -> list[int]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to finish."""
