"""KV blocks as numbers: who holds which, and which are free. No tensor is seen here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from strata.errors import StrataError


class PoolError(StrataError):
    """Blocks that are not there, or books that do not agree with who holds what."""


class BlockPool:
    """``blocks`` KV blocks with reference counts; a block is free when nobody holds it."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._references = [0] * blocks
        # A stack whose top is the lowest number at first, so that small runs touch little memory.
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def references(self, block: int) -> int:
        """How many times a block is held."""
        return self._references[block]

    def held_once(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` nobody holds but one."""
        return [self._references[block] for block in blocks].count(1)

    def allocate(self, count: int) -> list[int]:
        """``count`` free blocks, held once; PoolError, and nothing taken, if there are fewer."""
        if count > len(self._free):
            raise PoolError(f"{count} KV blocks are wanted, but {len(self._free)} are free")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Hold blocks once more that somebody holds already."""
        self._require_held(blocks)
        for block in blocks:
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks; those that nobody holds any longer are free again."""
        self._require_held(blocks)
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free.append(block)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise PoolError unless ``tables``, the blocks of every holder, explain every count."""
        held = Counter(block for table in tables for block in table)
        counted = {b: count for b, count in enumerate(self._references) if count}
        if held != counted:
            raise PoolError(f"KV blocks held are {dict(held)}, but counted are {counted}")
        if sorted(self._free) != [b for b in range(self.blocks) if not held[b]]:
            raise PoolError("the free KV blocks are not the ones that nobody holds")

    def _require_held(self, blocks: Sequence[int]) -> None:
        for block, times in Counter(blocks).items():
            if not 0 <= block < self.blocks or self._references[block] < times:
                raise PoolError(f"KV block {block} is not held {times} times")
