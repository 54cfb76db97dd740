"""KV of sequences: blocks that grow with them, are shared, and copied before they would differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from strata.backends.base import KV_BLOCK
from strata.kv.keeper import Keeper, NoKeeper
from strata.kv.pool import BlockPool
from strata.kv.prefix import ROOT, Prefixes


def blocks_for(positions: int) -> int:
    """KV blocks that hold ``positions`` positions."""
    return -(-positions // KV_BLOCK)


@dataclass
class SequenceKV:
    """The KV of one sequence: ``length`` positions computed, the blocks they lie in, and the nodes
    of those that are full and known. ``table`` may have blocks beyond, for what comes next."""

    length: int = 0
    table: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)


class KVSpace:
    """Hands out a pool's blocks. ``copy(source, target)`` copies one's content to another."""

    def __init__(
        self,
        pool: BlockPool,
        prefixes: Prefixes,
        copy: Callable[[int, int], None],
        keeper: Keeper | None = None,
    ) -> None:
        self.pool = pool
        self._prefixes = prefixes
        self._copy = copy
        self._keeper = keeper or NoKeeper()

    @property
    def cached(self) -> int:
        """Blocks that are held only to be found again."""
        self._keeper.collect()
        return self._prefixes.evictable()

    @property
    def available(self) -> int:
        """Blocks that can be had: free ones, and those held only to be found again."""
        cached = self.cached
        return self.pool.free + cached

    @property
    def unused(self) -> int:
        """Blocks that no sequence holds: free, held to be found again, or being kept elsewhere."""
        held = Counter(self._keeper.blocks())
        being_kept = sum(self.pool.references(block) == times for block, times in held.items())
        return self.pool.free + self._prefixes.evictable(held) + being_kept

    def begin(self, tokens: Sequence[int]) -> SequenceKV:
        """KV of a new sequence, with what is known of ``tokens``; the last token never is."""
        most = (len(tokens) - 1) // KV_BLOCK
        nodes, table = self._prefixes.match(tokens, most)
        return SequenceKV(len(table) * KV_BLOCK, table, nodes)

    def loadable(self, kv: SequenceKV, tokens: Sequence[int]) -> int:
        """Blocks behind ``kv`` that ``load`` could bring."""
        first, most = kv.length // KV_BLOCK, (len(tokens) - 1) // KV_BLOCK
        return self._keeper.find(tokens, first, most)

    def load(self, kv: SequenceKV, tokens: Sequence[int], count: int) -> int:
        """Append up to ``count`` blocks that are kept elsewhere; how many that was."""
        first = len(kv.table)
        blocks = self.take(count)
        if blocks is None:
            return 0
        loaded = 0
        try:
            loaded = self._keeper.load(tokens, first, blocks)
        finally:
            self.pool.release(blocks[loaded:])
        kv.table += blocks[:loaded]
        self.advance(kv, tokens, loaded * KV_BLOCK)
        return loaded

    def make_room(self, kv: SequenceKV, rows: int) -> bool:
        """Blocks of its own for ``rows`` positions more; False, and nothing done, if there are too
        few."""
        missing = blocks_for(kv.length + rows) - len(kv.table)
        last = kv.length // KV_BLOCK
        shared = last < len(kv.table) and self.pool.references(kv.table[last]) > 1
        blocks = self.take(missing + shared)
        if blocks is None:
            return False
        if shared:
            source, target = kv.table[last], blocks.pop()
            try:
                self._copy(source, target)
            except BaseException:
                self.pool.release([*blocks, target])
                raise
            kv.table[last] = target
            self.pool.release([source])
        kv.table += blocks
        return True

    def advance(self, kv: SequenceKV, tokens: Sequence[int], rows: int) -> None:
        """``rows`` positions of ``tokens`` more were computed; full blocks can now be found."""
        kv.length += rows
        for number in range(len(kv.nodes), kv.length // KV_BLOCK):
            part = tokens[number * KV_BLOCK : (number + 1) * KV_BLOCK]
            parent = kv.nodes[-1] if kv.nodes else ROOT
            node, kv.table[number] = self._prefixes.add(parent, part, kv.table[number])
            kv.nodes.append(node)

    def fork(self, kv: SequenceKV) -> SequenceKV:
        """Another sequence with the same positions, in the same blocks."""
        table = kv.table[: blocks_for(kv.length)]
        self.pool.share(table)
        return SequenceKV(kv.length, table, list(kv.nodes))

    def release(self, kv: SequenceKV) -> None:
        """Let go of everything. Full blocks can be found until their place is needed."""
        self._prefixes.touch(kv.nodes)
        self.pool.release(kv.table)
        kv.length, kv.table, kv.nodes = 0, [], []

    def save(self, kv: SequenceKV, tokens: Sequence[int]) -> None:
        """Keep the full blocks beyond this process, where there is a place for that."""
        full = kv.length // KV_BLOCK
        self._keeper.save(tokens[: full * KV_BLOCK], kv.table[:full])

    def give_up(self, kv: SequenceKV, tokens: Sequence[int], token_s: float | None) -> None:
        """Let go of everything for somebody else's sake. Full blocks are kept first where that, and
        bringing them back, is faster than computing them anew at ``token_s`` a token."""
        full = kv.length // KV_BLOCK
        seconds = self._keeper.seconds(full)
        if seconds is not None and token_s is not None and seconds < full * KV_BLOCK * token_s:
            self._keeper.save_now(tokens[: full * KV_BLOCK], kv.table[:full])
        self.release(kv)

    def take(self, count: int) -> list[int] | None:
        """``count`` blocks, held once, for which cached ones may be forgotten; None if too few."""
        if count > self.pool.free:
            self._prefixes.evict(count - self.pool.free)
        if count > self.pool.free and self._keeper.give_back():
            self._prefixes.evict(count - self.pool.free)
        return self.pool.allocate(count) if count <= self.pool.free else None

    def forget(self) -> None:
        """Forget all cached blocks."""
        self._prefixes.evict(self.pool.blocks)

    def check_integrity(self, tables: Sequence[Sequence[int]]) -> None:
        """Raise PoolError unless sequences with ``tables``, and what is cached or being kept,
        explain every hold on a block."""
        self._keeper.collect()
        self.pool.check_integrity([*tables, self._prefixes.blocks(), self._keeper.blocks()])
