"""State of sequences against plain books: what every block holds is kept beside, by content.

Random sequences grow, fork, go back, branch, are released and found again, in pools that are too
small for all, over every kind of group. Whatever a row could see must be what was computed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from strata.backends.base import KV_BLOCK, NO_BLOCK
from strata.kv import (
    BlockPool,
    KVCacheManager,
    NoPrefixCache,
    PrefixCache,
    PrefixIndex,
    SequenceState,
    blocks_for,
    pool_blocks,
)
from strata.program import StateGroup

FULL, SMALL, WIDE = StateGroup((0,)), StateGroup((1,), window=20), StateGroup((2,), window=150)
RECURRENT = StateGroup((3,), recurrent=True)
SINKS = StateGroup((4,), window=90, beginning=70)
KINDS = [
    (FULL,),
    (WIDE,),
    (SMALL,),
    (RECURRENT,),
    (FULL, SMALL),
    (FULL, WIDE, SMALL),
    (FULL, RECURRENT),
    (FULL, WIDE, RECURRENT),
    (SINKS,),
    (SINKS, SMALL, RECURRENT),
]
BLOCKS = 9
STEP = 160

Prefix = tuple[int, ...]


class Contents:
    """What the blocks of each group hold: for each place the tokens that led to it."""

    def __init__(self, groups: Sequence[StateGroup]) -> None:
        self.blocks: list[dict[int, list[Prefix | None]]] = [{} for _ in groups]

    def copy(self, group: int, source: int, target: int) -> None:
        self.blocks[group][target] = list(self.blocks[group][source])

    def put(self, group: int, block: int, place: int, prefix: Prefix) -> None:
        self.blocks[group].setdefault(block, [None] * KV_BLOCK)[place] = prefix


def compute(
    contents: Contents,
    groups: Sequence[StateGroup],
    tables: Sequence[Sequence[int]],
    tokens: Sequence[int],
    past: int,
    end: int,
) -> None:
    """What a step writes for positions ``past .. end``."""
    for number, group in enumerate(groups):
        if group.recurrent:
            source, target = tables[number]
            assert source != target
            before = () if source == NO_BLOCK else contents.blocks[number][source][0]
            assert before == tuple(tokens[:past])
            contents.put(number, target, 0, tuple(tokens[:end]))
            continue
        for position in range(past, end):
            block = tables[number][position // KV_BLOCK]
            assert block != NO_BLOCK
            contents.put(number, block, position % KV_BLOCK, tuple(tokens[: position + 1]))


def check(
    contents: Contents, groups: Sequence[StateGroup], kv: SequenceState, tokens: Sequence[int]
) -> None:
    """Everything that the next row sees is there and is right."""
    for number, group in enumerate(groups):
        if group.recurrent:
            slot = kv.tables[number][0]
            held = () if slot == NO_BLOCK else contents.blocks[number][slot][0]
            assert held == tuple(tokens[: kv.length])
            continue
        window = range(group.first_seen(kv.length), kv.length)
        for position in (*range(min(group.beginning, window.start)), *window):
            block = kv.tables[number][position // KV_BLOCK]
            assert block != NO_BLOCK
            held = contents.blocks[number][block][position % KV_BLOCK]
            assert held == tuple(tokens[: position + 1])


@dataclass(eq=False)
class Running:
    tokens: list[int]
    kv: SequenceState


class ManagerMachine(RuleBasedStateMachine):
    @initialize(groups=st.sampled_from(KINDS), finds=st.booleans())
    def begin(self, groups: tuple[StateGroup, ...], finds: bool) -> None:
        self.groups = groups
        self.pools = [BlockPool(BLOCKS) for _ in groups]
        self.index = PrefixCache(groups, self.pools) if finds else NoPrefixCache()
        self.contents = Contents(groups)
        self.manager = KVCacheManager(
            groups, self.pools, self.index, self.contents, step_rows=STEP, snapshot_rows=128
        )
        self.running: list[Running] = []

    def one(self, data: st.DataObject) -> Running:
        return self.running[data.draw(st.integers(0, len(self.running) - 1))]

    @precondition(lambda self: len(self.running) < 4)
    @rule(word=st.text("ab", min_size=1, max_size=9))
    def start(self, word: str) -> None:
        tokens = [ord(c) for c in word for _ in range(KV_BLOCK // 2)]
        s = Running(tokens, self.manager.match_prefix(tokens))
        assert s.kv.length < len(tokens)
        assert s.kv.length % KV_BLOCK == 0
        self.running.append(s)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), rows=st.integers(1, STEP))
    def grow(self, data: st.DataObject, rows: int) -> None:
        s = self.one(data)
        if len(s.tokens) == s.kv.length:
            s.tokens.append(ord("a"))
        rows = min(rows, len(s.tokens) - s.kv.length)
        rows = min(rows, self.manager.step_limit(s.kv, len(s.tokens)))
        before = [list(table) for table in s.kv.tables]
        if not self.manager.reserve(s.kv, rows):
            assert s.kv.tables == before
            return
        end = s.kv.length + rows
        compute(self.contents, self.groups, s.kv.tables, s.tokens, s.kv.length, end)
        if data.draw(st.booleans()):
            self.manager.commit(s.kv, s.tokens, rows)
        # Else the step was broken off: what was there is untouched.

    @precondition(lambda self: self.running and len(self.running) < 4)
    @rule(data=st.data(), back=st.integers(0, 150))
    def fork(self, data: st.DataObject, back: int) -> None:
        s = self.one(data)
        wanted = max(0, s.kv.length - back)
        kv = self.manager.fork(s.kv, wanted)
        assert kv.length <= wanted
        if back == 0 or (not any(g.window or g.recurrent for g in self.groups)):
            assert kv.length == wanted
        self.running.append(Running(list(s.tokens), kv))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), back=st.integers(0, 150))
    def truncate(self, data: st.DataObject, back: int) -> None:
        s = self.one(data)
        wanted = max(0, s.kv.length - back)
        assert self.manager.truncate(s.kv, wanted) == s.kv.length <= wanted
        del s.tokens[max(1, wanted) :]
        s.tokens += [ord("b")] * 40

    @precondition(lambda self: self.running and not self.manager.recurrent)
    @rule(data=st.data(), rows=st.integers(2, 70), adopt=st.booleans())
    def branch(self, data: st.DataObject, rows: int, adopt: bool) -> None:
        s = self.one(data)
        branch = self.manager.branch(s.kv, rows)
        if branch is None:
            return
        tokens = [*s.tokens[: s.kv.length], *[ord("c")] * rows]
        tables = [
            [*table[: branch.first], *own]
            for table, own in zip(s.kv.tables, branch.tables, strict=True)
        ]
        compute(self.contents, self.groups, tables, tokens, s.kv.length, s.kv.length + rows)
        if adopt:
            self.manager.adopt(s.kv, branch)
            s.tokens = tokens
            self.manager.commit(s.kv, s.tokens, rows)
        else:
            self.manager.drop(branch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        s = self.one(data)
        self.running.remove(s)
        self.manager.release(s.kv)

    @rule()
    def forget(self) -> None:
        self.manager.forget()

    @invariant()
    def everything_seen_is_right(self) -> None:
        for s in getattr(self, "running", []):
            check(self.contents, self.groups, s.kv, s.tokens)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "running"):
            return
        self.manager.check_integrity([s.kv.tables for s in self.running])
        held = [self.manager.held(s.kv) for s in self.running]
        for group, pool in enumerate(self.pools):
            unused = self.manager.unused()[group]
            assert pool.blocks - unused <= sum(row[group] for row in held)

    def teardown(self) -> None:
        for s in getattr(self, "running", []):
            self.manager.release(s.kv)
        if hasattr(self, "running"):
            self.manager.forget()
            assert [pool.free for pool in self.pools] == [BLOCKS] * len(self.pools)
            if isinstance(self.index, PrefixCache):
                # A node that stays would be memory lost with every prompt.
                assert not self.index._nodes
                assert not self.index._found


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def manager(
    groups: Sequence[StateGroup], blocks: int = 40, *, finds: bool = True
) -> tuple[KVCacheManager, Contents]:
    pools = [BlockPool(blocks) for _ in groups]
    index: PrefixIndex = PrefixCache(groups, pools) if finds else NoPrefixCache()
    contents = Contents(groups)
    return KVCacheManager(groups, pools, index, contents, step_rows=STEP), contents


def run(m: KVCacheManager, contents: Contents, tokens: list[int]) -> SequenceState:
    kv = m.match_prefix(tokens)
    while kv.length < len(tokens):
        rows = min(STEP, len(tokens) - kv.length, m.step_limit(kv, len(tokens)))
        assert m.reserve(kv, rows)
        compute(contents, m.groups, kv.tables, tokens, kv.length, kv.length + rows)
        m.commit(kv, tokens, rows)
        check(contents, m.groups, kv, tokens)
    return kv


@pytest.mark.parametrize("groups", KINDS, ids=str)
def test_a_prefix_is_found_again_across_all_groups(groups: tuple[StateGroup, ...]) -> None:
    m, contents = manager(groups)
    tokens = list(range(1000))
    m.release(run(m, contents, tokens))
    kv = m.match_prefix([*tokens, 7])
    assert kv.length == 1000 // KV_BLOCK * KV_BLOCK
    check(contents, groups, kv, tokens)
    for group, held in zip(groups, m.held(kv), strict=True):
        most = blocks_for(group.window) + 1 + blocks_for(group.beginning)
        most = most if group.window else 1000 // KV_BLOCK
        assert held <= (1 if group.recurrent else most)
    m.release(kv)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("groups", KINDS, ids=str)
def test_a_fork_outlives_its_origin_and_leaves_nothing(
    groups: tuple[StateGroup, ...], first: int
) -> None:
    m, contents = manager(groups)
    tokens = list(range(6 * KV_BLOCK))
    kv = run(m, contents, tokens)
    both = [kv, m.fork(kv)]
    m.release(both.pop(first))
    m.forget()
    (left,) = both
    longer = [*tokens, *[7] * 200]
    while left.length < len(longer):
        rows = min(STEP, len(longer) - left.length, m.step_limit(left, len(longer)))
        assert m.reserve(left, rows)
        compute(contents, groups, left.tables, longer, left.length, left.length + rows)
        m.commit(left, longer, rows)
        m.forget()
        check(contents, groups, left, longer)
    m.release(left)
    m.forget()
    assert [pool.free for pool in m.pools] == [40] * len(groups)
    assert isinstance(m._index, PrefixCache)
    assert not m._index._nodes


def test_a_window_holds_no_more_than_it_sees_and_a_step() -> None:
    groups = (FULL, WIDE)
    m, contents = manager(groups)
    kv, tokens = m.new(), list(range(2000))
    most = 0
    while kv.length < len(tokens):
        rows = min(STEP, len(tokens) - kv.length)
        assert m.reserve(kv, rows)
        most = max(most, m.held(kv)[1])
        compute(contents, groups, kv.tables, tokens, kv.length, kv.length + rows)
        m.commit(kv, tokens, rows)
    assert most <= m.needed(2000)[1] == blocks_for(150 + STEP + KV_BLOCK) + 1
    assert m.held(kv)[1] <= blocks_for(150 + KV_BLOCK) + 1
    assert m.held(kv)[0] == blocks_for(2000)


@pytest.mark.parametrize("window", [1, 20, 65, 150])
def test_a_sequence_can_be_shared_up_to_its_last_token_and_its_last_full_block(window: int) -> None:
    m, contents = manager((FULL, StateGroup((1,), window)))
    kv, tokens = m.new(), list(range(400))
    while kv.length < len(tokens):
        assert m.reserve(kv, 1)
        compute(contents, m.groups, kv.tables, tokens, kv.length, kv.length + 1)
        m.commit(kv, tokens, 1)
        for length in (kv.length, kv.length - 1, kv.length // KV_BLOCK * KV_BLOCK):
            assert m.can_share(kv, length)
        other = m.fork(kv, kv.length - 1)
        assert other.length == kv.length - 1
        check(contents, m.groups, other, tokens)
        m.release(other)


def test_the_window_at_the_end_of_a_prefix_is_forgotten_last() -> None:
    groups = (FULL, SMALL)
    m, contents = manager(groups)
    tokens = list(range(1000))
    m.release(run(m, contents, tokens))
    m.take(1, 38)
    kv = m.match_prefix([*tokens, 7])
    assert kv.length == 1000 // KV_BLOCK * KV_BLOCK


def test_a_beginning_is_forgotten_after_all_that_is_of_no_use_without_it() -> None:
    m, _ = manager((SINKS,))
    tokens = list(range(1000))
    m.release(run(m, _, tokens))
    # 15 full blocks are known: 2 of the beginning, and 2 that the window sees behind the last one.
    assert m.take(0, 40 - 4) is not None
    kv = m.match_prefix([*tokens, 7])
    assert kv.length == 1000 // KV_BLOCK * KV_BLOCK
    assert m.held(kv) == [4]
    assert [block != NO_BLOCK for block in kv.tables[0][:3]] == [True, True, False]


def test_where_all_positions_are_kept_the_end_of_a_prefix_is_forgotten_first() -> None:
    m, contents = manager((FULL,), blocks=8)
    tokens = list(range(5 * KV_BLOCK))
    m.release(run(m, contents, tokens))
    assert m.take(0, 3 + 1) is not None
    kv = m.match_prefix([*tokens, 7])
    assert kv.length == 4 * KV_BLOCK


def test_a_pool_for_a_budget_keeps_the_proportion() -> None:
    groups = (FULL, WIDE, RECURRENT)
    sizes = (1000, 100, 10)
    whole = pool_blocks(groups, sizes, context=4096, parallel=4, step_rows=STEP)
    one = pool_blocks(groups, sizes, context=4096, parallel=1, step_rows=STEP)
    assert whole is not None
    assert one is not None
    assert whole[:2] == (4 * 64, 4 * (blocks_for(150 + STEP + KV_BLOCK) + 1))
    least = sum(n * size for n, size in zip((64, 7, 2), sizes, strict=True))
    for nbytes in (least, least + 1, 100_000, 150_000, 10**9):
        found = pool_blocks(groups, sizes, context=4096, parallel=4, step_rows=STEP, nbytes=nbytes)
        assert found is not None
        assert sum(n * size for n, size in zip(found, sizes, strict=True)) <= nbytes
        assert all(low <= n <= high for low, n, high in zip((64, 7, 2), found, whole, strict=True))
    assert (
        pool_blocks(groups, sizes, context=4096, parallel=4, step_rows=STEP, nbytes=least - 1)
        is None
    )
