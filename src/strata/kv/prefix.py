"""Full blocks found again by the tokens that led to them.

A tree of blocks of tokens (SGLang's radix cache with edges of one block): a node stands for a
block's tokens after all those before them, and holds, for each group of state, the block that keeps
them, or none. A prefix is found as far as every group can serve it: all of its blocks where all
positions are kept, those within the window at its end where older ones are forgotten, and the slot
with the state at its end where there is recurrent state.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import count
from typing import Protocol

from strata.backends.base import KV_BLOCK, NO_BLOCK
from strata.kv.pool import BlockPool
from strata.kv.sequence import blocks_for, seen_blocks
from strata.program import StateGroup
from strata.records import dataclass

ROOT = 0
"""The node that every sequence begins at."""


@dataclass
class Match:
    """A known beginning: its nodes, and for each group the block of every node or NO_BLOCK. Of a
    recurrent group only the last node's slot. All of them are held once more, for the caller."""

    nodes: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)


class PrefixIndex(Protocol):
    """Remembers full blocks. Implementations: PrefixCache, and NoPrefixCache, which it must equal
    in all but speed."""

    @property
    def finds(self) -> bool:
        """Whether anything is ever found."""

    def match(self, tokens: Sequence[int], most: int) -> Match:
        """The longest known beginning of ``tokens``, at most ``most`` blocks."""

    def add(
        self, parent: int, tokens: Sequence[int], blocks: Sequence[int]
    ) -> tuple[int, list[int]]:
        """Remember the full blocks of all groups that the caller holds for a node's tokens; the
        node, and the blocks to use from now on. Where others have the same content already,
        the caller's are let go of and those are held in their place."""

    def attach(self, node: int, group: int, slot: int) -> None:
        """Remember the state at a node's end, in a slot that the caller holds."""

    def slot(self, node: int, group: int) -> int:
        """The slot with the state at a node's end, NO_BLOCK if it is not known."""

    def pin(self, node: int) -> None:
        """A sequence has come to a node: it stays, with those before it, whatever it holds."""

    def unpin(self, node: int) -> None:
        """A sequence that had come to a node has gone on, or is no more."""

    def touch(self, nodes: Sequence[int]) -> None:
        """Nodes of one sequence, first to last, were in use until now."""

    def evict(self, group: int, count: int) -> int:
        """Forget up to ``count`` blocks of a group that nobody else holds, the longest unused
        first; how many that was."""

    def evictable(self, group: int, others: Mapping[int, int] | None = None) -> int:
        """Blocks that ``evict`` could free, were it not for the holds of ``others``, by block."""

    def blocks(self, group: int) -> list[int]:
        """Blocks of a group that are held here."""


class NoPrefixCache:
    """Remembers nothing: every prompt is computed. The plain one that the other must equal."""

    finds = False

    def match(self, tokens: Sequence[int], most: int) -> Match:
        """Nothing is known."""
        return Match()

    def add(
        self, parent: int, tokens: Sequence[int], blocks: Sequence[int]
    ) -> tuple[int, list[int]]:
        """The blocks stay the caller's alone."""
        return ROOT, list(blocks)

    def attach(self, node: int, group: int, slot: int) -> None:
        """The slot stays the caller's alone."""

    def slot(self, node: int, group: int) -> int:
        """None is known."""
        return NO_BLOCK

    def pin(self, node: int) -> None:
        """Nothing to note."""

    def unpin(self, node: int) -> None:
        """Nothing to note."""

    def touch(self, nodes: Sequence[int]) -> None:
        """Nothing to note."""

    def evict(self, group: int, count: int) -> int:
        """Nothing to free."""
        return 0

    def evictable(self, group: int, others: Mapping[int, int] | None = None) -> int:
        """None."""
        return 0

    def blocks(self, group: int) -> list[int]:
        """None."""
        return []


@dataclass
class _Node:
    key: tuple[int, bytes]
    blocks: list[int]
    children: int = 0
    pins: int = 0


class PrefixCache:
    """Tokens themselves are the key of a node, so that what is found was compared, not only hashed.

    Each group forgets by itself, the least recently used block first. Where all positions are kept,
    a block was in use whenever one after it was, so nothing is forgotten before what follows it;
    of a window, what lies furthest back goes first, but for a beginning, which goes last. A node is
    gone when it holds nothing, no sequence is there, and nothing follows it.
    """

    finds = True

    def __init__(self, groups: Sequence[StateGroup], pools: Sequence[BlockPool]) -> None:
        self._groups, self._pools = tuple(groups), tuple(pools)
        self._ids = count(ROOT + 1)
        self._found: dict[tuple[int, bytes], int] = {}
        self._nodes: dict[int, _Node] = {}
        # Of each group the nodes that hold a block of it and that block, the longest unused first.
        self._order: list[OrderedDict[int, int]] = [OrderedDict() for _ in self._groups]

    def match(self, tokens: Sequence[int], most: int) -> Match:
        """See PrefixIndex."""
        nodes: list[int] = []
        parent = ROOT
        for start in range(0, most * KV_BLOCK, KV_BLOCK):
            node = self._found.get((parent, _packed(tokens[start : start + KV_BLOCK])))
            if node is None:
                break
            nodes.append(node)
            parent = node
        nodes = nodes[: self._served(nodes)]
        found = Match(nodes)
        for number, group in enumerate(self._groups):
            head, tail = self._needed(group, len(nodes))
            table = [
                self._nodes[node].blocks[number] if i in head or i in tail else NO_BLOCK
                for i, node in enumerate(nodes)
            ]
            self._pools[number].share([block for block in table if block != NO_BLOCK])
            found.tables.append(table[-1:] if group.recurrent else table)
        self.touch(nodes)
        return found

    def _served(self, nodes: Sequence[int]) -> int:
        """The most of ``nodes``, from the first, that every group can serve."""
        # For each group the run of nodes before each place that hold a block.
        runs: list[list[int]] = []
        for number in range(len(self._groups)):
            run = [0]
            for node in nodes:
                held = self._nodes[node].blocks[number] != NO_BLOCK
                run.append(run[-1] + 1 if held else 0)
            runs.append(run)
        for length in range(len(nodes), 0, -1):
            if all(
                len(part) <= run[part.stop]
                for group, run in zip(self._groups, runs, strict=True)
                for part in self._needed(group, length)
            ):
                return length
        return 0

    @staticmethod
    def _needed(group: StateGroup, blocks: int) -> tuple[range, range]:
        """Those of so many blocks that a group needs to go on behind them."""
        if group.recurrent:
            return range(0), range(max(0, blocks - 1), blocks)
        return seen_blocks(group, blocks * KV_BLOCK)

    def add(
        self, parent: int, tokens: Sequence[int], blocks: Sequence[int]
    ) -> tuple[int, list[int]]:
        """See PrefixIndex."""
        key = (parent, _packed(tokens))
        number = self._found.get(key)
        if number is None:
            number = next(self._ids)
            self._found[key] = number
            self._nodes[number] = _Node(key, [NO_BLOCK] * len(self._groups))
            if parent != ROOT:
                self._nodes[parent].children += 1
        node, use = self._nodes[number], list(blocks)
        for group, block in enumerate(blocks):
            known = node.blocks[group]
            if block == NO_BLOCK or known == block:
                continue
            if known == NO_BLOCK:
                self._hold(number, group, block)
            else:
                self._pools[group].share([known])
                self._pools[group].release([block])
                use[group] = known
        return number, use

    def attach(self, node: int, group: int, slot: int) -> None:
        """See PrefixIndex."""
        if self._nodes[node].blocks[group] == NO_BLOCK:
            self._hold(node, group, slot)

    def slot(self, node: int, group: int) -> int:
        """See PrefixIndex."""
        return self._nodes[node].blocks[group]

    def _hold(self, node: int, group: int, block: int) -> None:
        self._pools[group].share([block])
        self._nodes[node].blocks[group] = block
        self._order[group][node] = block

    def pin(self, node: int) -> None:
        """See PrefixIndex."""
        if node != ROOT:
            self._nodes[node].pins += 1

    def unpin(self, node: int) -> None:
        """See PrefixIndex."""
        if node != ROOT:
            self._nodes[node].pins -= 1
            self._prune(node)

    def touch(self, nodes: Sequence[int]) -> None:
        """See PrefixIndex."""
        for group, order in zip(self._groups, self._order, strict=True):
            keeps_all = not group.window and not group.recurrent
            kept = blocks_for(group.beginning)
            # Without a beginning what comes after is of no use.
            last = nodes if keeps_all else nodes[:kept]
            for node in (*nodes[len(last) :], *reversed(last)):
                if node in order:
                    order.move_to_end(node)

    def evict(self, group: int, count: int) -> int:
        """See PrefixIndex."""
        pool, order = self._pools[group], self._order[group]
        unused = (node for node, block in order.items() if pool.references(block) == 1)
        chosen = [node for _, node in zip(range(count), unused, strict=False)]
        for number in chosen:
            self._nodes[number].blocks[group] = NO_BLOCK
            pool.release([order.pop(number)])
            self._prune(number)
        return len(chosen)

    def _prune(self, number: int) -> None:
        """Take out a node that holds nothing and leads nowhere, and those before it likewise."""
        while number != ROOT:
            node = self._nodes[number]
            if node.children or node.pins or any(b != NO_BLOCK for b in node.blocks):
                return
            del self._nodes[number], self._found[node.key]
            number = node.key[0]
            if number != ROOT:
                self._nodes[number].children -= 1

    def evictable(self, group: int, others: Mapping[int, int] | None = None) -> int:
        """See PrefixIndex."""
        pool, blocks = self._pools[group], self._order[group].values()
        if not others:
            return pool.held_once(blocks)
        return sum(pool.references(block) == 1 + others.get(block, 0) for block in blocks)

    def blocks(self, group: int) -> list[int]:
        """See PrefixIndex."""
        return list(self._order[group].values())


def _packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
