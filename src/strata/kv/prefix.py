"""Full KV blocks found again by the tokens that led to them."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from strata.backends.base import KV_BLOCK
from strata.kv.pool import BlockPool

ROOT = 0
"""The node that every sequence begins at."""


class Prefixes(Protocol):
    """Remembers full blocks. A node stands for a block's tokens after all those before them."""

    def match(self, tokens: Sequence[int], most: int) -> tuple[list[int], list[int]]:
        """Nodes and blocks of the longest known beginning of ``tokens``, at most ``most`` blocks.

        The blocks are held once more, for the caller.
        """

    def add(self, parent: int, tokens: Sequence[int], block: int) -> tuple[int, int]:
        """Remember a full block that the caller holds; its node, and the block to use from now on.

        That is another one with the same content if there is one: ``block`` is then let go of, and
        the other held in its place.
        """

    def touch(self, nodes: Sequence[int]) -> None:
        """Nodes of one sequence, first to last, were in use until now."""

    def evict(self, count: int) -> int:
        """Forget up to ``count`` blocks that nobody else holds, the longest unused first."""

    def evictable(self, others: Mapping[int, int] | None = None) -> int:
        """Blocks that ``evict`` could free, were it not for the holds of ``others``, by block."""

    def blocks(self) -> list[int]:
        """Blocks that are held here."""


class NoPrefixes:
    """Remembers nothing: every prompt is computed. The plain one that the other must equal."""

    def match(self, tokens: Sequence[int], most: int) -> tuple[list[int], list[int]]:
        """Nothing is known."""
        return [], []

    def add(self, parent: int, tokens: Sequence[int], block: int) -> tuple[int, int]:
        """The block stays the caller's alone."""
        return ROOT, block

    def touch(self, nodes: Sequence[int]) -> None:
        """Nothing to note."""

    def evict(self, count: int) -> int:
        """Nothing to free."""
        return 0

    def evictable(self, others: Mapping[int, int] | None = None) -> int:
        """None."""
        return 0

    def blocks(self) -> list[int]:
        """None."""
        return []


@dataclass
class _Node:
    key: tuple[int, bytes]
    block: int


class KnownPrefixes:
    """A hash table from a node and the next block's tokens to the next node.

    Tokens themselves are the key, so that what is found was compared, not only hashed. The least
    recently used blocks are forgotten first; as a block was in use whenever one after it was,
    nothing is forgotten before what follows it, and all that is kept can be found.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._ids = count(ROOT + 1)
        self._found: dict[tuple[int, bytes], int] = {}
        self._nodes: OrderedDict[int, _Node] = OrderedDict()

    def match(self, tokens: Sequence[int], most: int) -> tuple[list[int], list[int]]:
        """See Prefixes."""
        nodes: list[int] = []
        parent = ROOT
        for start in range(0, most * KV_BLOCK, KV_BLOCK):
            node = self._found.get((parent, _packed(tokens[start : start + KV_BLOCK])))
            if node is None:
                break
            nodes.append(node)
            parent = node
        blocks = [self._nodes[node].block for node in nodes]
        self._pool.share(blocks)
        self.touch(nodes)
        return nodes, blocks

    def add(self, parent: int, tokens: Sequence[int], block: int) -> tuple[int, int]:
        """See Prefixes."""
        key = (parent, _packed(tokens))
        node = self._found.get(key)
        if node is None:
            node = next(self._ids)
            self._pool.share([block])
            self._found[key] = node
            self._nodes[node] = _Node(key, block)
            return node, block
        known = self._nodes[node].block
        self._pool.share([known])
        self._pool.release([block])
        return node, known

    def touch(self, nodes: Sequence[int]) -> None:
        """See Prefixes."""
        for node in reversed(nodes):
            self._nodes.move_to_end(node)

    def evict(self, count: int) -> int:
        """See Prefixes."""
        unused = (n for n, node in self._nodes.items() if self._pool.references(node.block) == 1)
        chosen = [node for _, node in zip(range(count), unused, strict=False)]
        for number in chosen:
            node = self._nodes.pop(number)
            del self._found[node.key]
            self._pool.release([node.block])
        return len(chosen)

    def evictable(self, others: Mapping[int, int] | None = None) -> int:
        """See Prefixes."""
        held, references = others or {}, self._pool.references
        blocks = (node.block for node in self._nodes.values())
        return sum(references(block) == 1 + held.get(block, 0) for block in blocks)

    def blocks(self) -> list[int]:
        """See Prefixes."""
        return [node.block for node in self._nodes.values()]


def _packed(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
