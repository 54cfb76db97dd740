"""Where full blocks may be kept beyond the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Keeper(Protocol):
    """Keeps what full blocks hold, and brings it back. Sees tokens and block numbers."""

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """How many blocks from number ``first`` of ``tokens`` are kept, below number ``most``."""

    def load(self, tokens: Sequence[int], first: int, blocks: Sequence[int]) -> int:
        """Fill ``blocks`` with the ones from number ``first``; how many of them, from the start,
        now hold what they should."""

    def save(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Keep full blocks, which are held here until that is done."""

    def save_now(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Keep full blocks before coming back, because they are about to be given up."""

    def seconds(self, blocks: int) -> float | None:
        """How long it takes to keep so many blocks and bring them back; None where it cannot be
        done."""

    def collect(self) -> None:
        """Let go of the blocks that are done."""

    def give_back(self) -> bool:
        """Let go of all blocks now, done or not; whether there were any."""

    def blocks(self) -> list[int]:
        """Blocks that are held here."""

    def close(self) -> None:
        """Finish within some seconds; nothing is kept afterwards."""


class NoKeeper:
    """No such place."""

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """None."""
        return 0

    def load(self, tokens: Sequence[int], first: int, blocks: Sequence[int]) -> int:
        """None."""
        return 0

    def save(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Nothing is done."""

    def save_now(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Nothing is done."""

    def seconds(self, blocks: int) -> float | None:
        """It cannot be done."""
        return None

    def collect(self) -> None:
        """There are none."""

    def give_back(self) -> bool:
        """There were none."""
        return False

    def blocks(self) -> list[int]:
        """None."""
        return []

    def close(self) -> None:
        """Nothing to finish."""
