"""The scheduler alone: integers in, integers out."""

from __future__ import annotations

from strata.backends.base import KV_BLOCK
from strata.engine.scheduler import Advance, Scheduler
from strata.kv import BlockPool, KnownPrefixes, KVSpace, NoPrefixes, Prefixes

Shown = list[tuple[int, int, int, bool]]


class Fixed:
    """A pace of so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def share(self, answers: int, prompts: int) -> int:
        return self.tokens


def scheduler(
    blocks: int = 8,
    parallel: int = 4,
    token_budget: int = 100,
    pace: Fixed | None = None,
    known: bool = False,
) -> Scheduler:
    pool = BlockPool(blocks)
    prefixes: Prefixes = KnownPrefixes(pool) if known else NoPrefixes()
    space = KVSpace(pool, prefixes, lambda source, target: None)
    return Scheduler(space, parallel=parallel, token_budget=token_budget, pace=pace)


def shown(plan: list[Advance]) -> Shown:
    return [(a.id, a.past, a.rows, a.reaches) for a in plan]


def prompt(length: int, first: int = 0) -> list[int]:
    return [first, *range(1, length)]


def step(s: Scheduler, token: int = 5) -> Shown:
    """Plan, commit, and one token more for who reached its last one."""
    plan = s.plan()
    s.check_integrity()
    s.commit(plan)
    for a in plan:
        for id in (a.id, *a.forks) if a.reaches else ():
            s.extend(id, token)
    s.check_integrity()
    return shown(plan)


def test_the_oldest_prompt_gets_half_and_the_shortest_ones_the_rest() -> None:
    s = scheduler()
    for id, length in ((1, 200), (2, 90), (3, 10)):
        s.add(id, prompt(length, id))
    plan = s.plan()
    assert shown(plan) == [(1, 0, 50, False), (2, 0, 40, False), (3, 0, 10, True)]
    s.commit(plan)
    assert shown(s.plan()) == [(1, 50, 50, False), (2, 40, 50, True)]


def test_equal_prompts_are_served_in_order() -> None:
    s = scheduler()
    for id in (1, 2):
        s.add(id, prompt(90, id))
    assert step(s) == [(1, 0, 90, True), (2, 0, 10, False)]


def test_answers_come_first_and_prompts_at_a_pace() -> None:
    s = scheduler(pace=Fixed(7), token_budget=20)
    for id in (1, 2):
        s.add(id, [id])
    s.add(3, prompt(30))
    assert step(s) == [(1, 0, 1, True), (2, 0, 1, True), (3, 0, 7, False)]
    s.remove(1)
    s.remove(2)
    # Nobody to be slowed down: the whole budget.
    assert step(s) == [(3, 7, 20, False)]


def test_answers_never_wait_for_the_budget() -> None:
    s = scheduler(parallel=4, token_budget=4)
    for id in range(3):
        s.add(id, [id])
    s.add(3, prompt(50))
    for past in range(10):
        rows = step(s)
        assert [(id, n) for id, _, n, _ in rows] == [(0, 1), (1, 1), (2, 1), (3, 1)]
        assert rows[3][1] == past


def test_a_plan_that_is_not_committed_is_made_again() -> None:
    s = scheduler()
    s.add(1, prompt(150))
    assert s.plan() == s.plan()
    s.check_integrity()


def test_who_does_not_fit_waits_and_nobody_overtakes() -> None:
    s = scheduler(blocks=5)
    for id, blocks in ((1, 2), (2, 3), (3, 1)):
        s.add(id, prompt(blocks * KV_BLOCK, id))
    assert [a.id for a in s.plan()] == [1]
    assert (s.running, s.waiting) == (1, 2)
    s.remove(1)
    s.check_integrity()
    assert [a.id for a in s.plan()] == [2, 3]
    assert (s.running, s.waiting) == (2, 0)


def test_parallel_is_a_limit() -> None:
    s = scheduler(parallel=2)
    for id in range(4):
        s.add(id, [id])
    assert [a.id for a in s.plan()] == [0, 1]
    s.remove(0)
    s.remove(3)
    s.remove(17)
    assert [a.id for a in s.plan()] == [1, 2]


def test_extending_asks_for_one_more() -> None:
    s = scheduler()
    s.add(1, prompt(5))
    s.commit(s.plan())
    assert s.plan() == []
    s.extend(1, 9)
    plan = s.plan()
    assert shown(plan) == [(1, 5, 1, True)]
    assert plan[0].tokens == (9,)


def test_blocks_are_taken_as_they_are_needed() -> None:
    s = scheduler(token_budget=KV_BLOCK)
    s.add(1, prompt(3 * KV_BLOCK))
    for blocks in (1, 2, 3, 4):
        assert len(s.plan()[0].table) == blocks
        step(s)


def test_the_youngest_gives_way_and_comes_back_with_all_its_tokens() -> None:
    s = scheduler(blocks=4, token_budget=500)
    for id in (1, 2):
        s.add(id, prompt(KV_BLOCK - 1, id))
    while not s.preemptions:
        rows = step(s)
    # Each had two blocks; the older one needed a third.
    assert [id for id, *_ in rows] == [1]
    assert (s.running, s.waiting) == (1, 1)
    assert s.computed(2) == 0
    s.add(3, [1])
    s.remove(1)
    assert step(s)[0] == (2, 0, 2 * KV_BLOCK + 1, True)


def test_what_was_computed_is_found_again_after_giving_way() -> None:
    s = scheduler(blocks=5, token_budget=500, known=True)
    for id in (1, 2):
        s.add(id, prompt(KV_BLOCK - 1, id))
    while not s.preemptions:
        step(s)
    s.remove(1)
    ((id, past, *_),) = step(s)
    assert (id, past % KV_BLOCK) == (2, 0)
    assert past > 0


def test_one_prompt_is_computed_once_for_all_its_answers() -> None:
    s = scheduler(token_budget=60)
    for id in range(3):
        s.add(id, prompt(100))
    s.add(9, [9])
    assert step(s) == [(0, 0, 59, False), (9, 0, 1, True)]
    plan = s.plan()
    assert [(a.id, a.rows, a.forks) for a in plan] == [(0, 41, (1, 2)), (9, 1, ())]
    s.commit(plan)
    s.check_integrity()
    assert s.running == 4
    for id in (0, 1, 2, 9):
        s.extend(id, id)
    tables = {a.id: a.table for a in s.plan()}
    # The full block is shared; of the other one each has its own.
    assert len({tables[id][0] for id in range(3)}) == 1
    assert len({tables[id][1] for id in range(3)}) == 3
    s.check_integrity()


def test_answers_beyond_the_places_wait_and_are_let_in_together() -> None:
    s = scheduler(parallel=2, known=True)
    for id in range(4):
        s.add(id, prompt(70))
    plan = s.plan()
    assert [(a.id, a.forks) for a in plan] == [(0, (1,))]
    s.commit(plan)
    s.remove(0)
    s.remove(1)
    plan = s.plan()
    assert [(a.id, a.past, a.rows, a.forks) for a in plan] == [(2, KV_BLOCK, 6, (3,))]


def test_nobody_is_overtaken_by_an_equal_prompt() -> None:
    s = scheduler(parallel=3, blocks=4)
    s.add(1, prompt(70))
    s.add(2, prompt(150, 2))
    s.add(3, prompt(70))
    assert [(a.id, a.forks) for a in s.plan()] == [(1, ())]


def test_followers_find_another_leader() -> None:
    for gone in (0, 1):
        s = scheduler(token_budget=60)
        for id in range(4):
            s.add(id, prompt(100))
        step(s)
        s.remove(gone)
        left = [id for id in range(4) if id != gone]
        for _ in range(3):
            step(s)
        assert s.running == 3
        assert [a.id for a in s.plan()] == left
        s.check_integrity()
    s = scheduler()
    s.add(0, prompt(100))
    s.add(1, prompt(100))
    s.remove(0)
    s.remove(1)
    s.add(2, prompt(100))
    assert [a.id for a in s.plan()] == [2]
