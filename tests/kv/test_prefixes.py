"""The prefix index against a search through everything that was remembered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from strata.backends.base import KV_BLOCK
from strata.kv import BlockPool, KnownPrefixes, KVSpace, NoPrefixes, SequenceKV, blocks_for

BLOCKS = 10
LETTERS = "ab"


def tokens_of(word: str, rest: int = 1) -> list[int]:
    """A block of one token for each letter, and some more."""
    return [ord(c) for c in word for _ in range(KV_BLOCK)] + [7] * rest


class PrefixMachine(RuleBasedStateMachine):
    """Sequences of full blocks come and go; what a block holds is kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.prefixes = KnownPrefixes(self.pool)
        self.space = KVSpace(self.pool, self.prefixes, self.copy)
        self.content: dict[int, str] = {}
        self.running: list[tuple[str, SequenceKV]] = []

    def copy(self, source: int, target: int) -> None:
        self.content[target] = self.content[source]

    @rule(word=st.text(LETTERS, max_size=5))
    def run(self, word: str) -> None:
        known = {w for block in self.prefixes.blocks() for w in [self.content[block]]}
        longest = max(n for n in range(len(word) + 1) if n == 0 or word[:n] in known)
        kv = self.space.begin(tokens_of(word))
        assert kv.length == longest * KV_BLOCK
        rows = len(word) * KV_BLOCK - kv.length
        if not self.space.make_room(kv, rows):
            assert self.space.available < blocks_for(rows)
            self.space.release(kv)
            return
        for number in range(longest, len(word)):
            self.content[kv.table[number]] = word[: number + 1]
        self.space.advance(kv, tokens_of(word), rows)
        self.running.append((word, kv))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.running) - 1))
        self.space.release(self.running.pop(at)[1])

    @rule(count=st.integers(0, 4))
    def evict(self, count: int) -> None:
        before, could = self.pool.free, self.prefixes.evictable()
        assert self.prefixes.evict(count) == min(count, could) == self.pool.free - before

    @invariant()
    def blocks_hold_what_they_should(self) -> None:
        for word, kv in self.running:
            assert [self.content[b] for b in kv.table] == [word[: i + 1] for i in range(len(word))]
        self.space.check_integrity([kv.table for _, kv in self.running])

    @invariant()
    def everything_remembered_can_be_found(self) -> None:
        words = [self.content[block] for block in self.prefixes.blocks()]
        assert len(set(words)) == len(words)
        assert all(word[:-1] in words or len(word) == 1 for word in words)


TestPrefixes = PrefixMachine.TestCase


def space(blocks: int = 8) -> KVSpace:
    pool = BlockPool(blocks)
    return KVSpace(pool, KnownPrefixes(pool), lambda source, target: None)


def run(s: KVSpace, tokens: Sequence[int]) -> SequenceKV:
    kv = s.begin(tokens)
    assert s.make_room(kv, len(tokens) - kv.length)
    s.advance(kv, tokens, len(tokens) - kv.length)
    return kv


def test_the_longest_unused_goes_first() -> None:
    s = space(6)
    for word in ("ab", "cd"):
        s.release(run(s, tokens_of(word, 0)))
    s.release(s.begin(tokens_of("ab")))  # looked at again
    s.release(run(s, tokens_of("efg", 0)))  # needs three blocks where two are free
    assert [s.begin(tokens_of(w)).length // KV_BLOCK for w in ("ab", "cd", "efg")] == [2, 1, 3]


def test_the_same_tokens_in_another_order_are_another_prefix() -> None:
    s = space()
    tokens = list(range(2 * KV_BLOCK))
    s.release(run(s, tokens))
    for i, j in ((0, 1), (KV_BLOCK - 1, KV_BLOCK), (KV_BLOCK, KV_BLOCK + 1)):
        other = list(tokens)
        other[i], other[j] = other[j], other[i]
        kv = s.begin([*other, 1])
        assert kv.length == i // KV_BLOCK * KV_BLOCK
        s.release(kv)


def test_equal_blocks_of_two_at_once_become_one() -> None:
    s = space()
    tokens = tokens_of("ab", 0)
    first, second = s.begin(tokens), s.begin(tokens)
    for kv in (first, second):
        assert s.make_room(kv, len(tokens))
    assert not set(first.table) & set(second.table)
    for kv in (first, second):
        s.advance(kv, tokens, len(tokens))
    assert first.table == second.table
    assert s.available == 8 - 2
    s.check_integrity([first.table, second.table])


def test_a_write_to_a_shared_block_copies_it_once() -> None:
    copies: list[tuple[int, int]] = []
    pool = BlockPool(8)
    s = KVSpace(pool, NoPrefixes(), lambda source, target: copies.append((source, target)))
    tokens = tokens_of("a", 10)
    kv = run(s, tokens)
    forks = [s.fork(kv) for _ in range(2)]
    assert pool.free == 8 - 2
    for one in (kv, *forks):
        assert s.make_room(one, 1)
        assert s.make_room(one, 1)
    # The last holder keeps the original.
    assert len(copies) == 2
    assert len({one.table[1] for one in (kv, *forks)}) == 3
    assert len({one.table[0] for one in (kv, *forks)}) == 1
    for one in (kv, *forks):
        s.release(one)
    assert pool.free == 8


def test_a_fork_on_the_edge_of_a_block_copies_nothing() -> None:
    pool = BlockPool(8)

    def copy(source: int, target: int) -> None:
        raise AssertionError("copied")

    s = KVSpace(pool, NoPrefixes(), copy)
    kv = run(s, tokens_of("ab", 0))
    fork = s.fork(kv)
    assert s.make_room(kv, 1)
    assert s.make_room(fork, 1)
    assert kv.table[:2] == fork.table[:2]
    assert kv.table[2] != fork.table[2]


def test_a_copy_that_fails_leaves_the_books_right() -> None:
    pool = BlockPool(4)

    def copy(source: int, target: int) -> None:
        raise KeyboardInterrupt

    s = KVSpace(pool, NoPrefixes(), copy)
    kv = run(s, tokens_of("", 10))
    fork = s.fork(kv)
    with pytest.raises(KeyboardInterrupt):
        s.make_room(kv, 1)
    s.check_integrity([kv.table, fork.table])


def test_room_is_all_or_nothing() -> None:
    s = space(3)
    kv = run(s, tokens_of("a", 1))
    assert not s.make_room(kv, 2 * KV_BLOCK)
    assert len(kv.table) == 2
    assert s.make_room(kv, KV_BLOCK)
    assert len(kv.table) == 3
