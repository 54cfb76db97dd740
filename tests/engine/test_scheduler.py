"""The scheduler alone: integers in, integers out."""

from __future__ import annotations

from strata.backends.base import KV_BLOCK
from strata.engine.scheduler import Scheduler, blocks_for
from strata.kv import BlockPool


def scheduler(blocks: int = 8, parallel: int = 4, token_budget: int = 100) -> Scheduler:
    return Scheduler(BlockPool(blocks), parallel=parallel, token_budget=token_budget)


def test_blocks_for() -> None:
    sizes = (0, 1, KV_BLOCK, KV_BLOCK + 1)
    assert [blocks_for(n) for n in sizes] == [0, 1, 1, 2]


def test_the_budget_is_shared_in_order() -> None:
    s = scheduler()
    for id, target in ((1, 30), (2, 200), (3, 10)):
        s.add(id, target, target)
    plan = s.plan()
    assert [(a.id, a.past, a.rows, a.reaches) for a in plan] == [
        (1, 0, 30, True),
        (2, 0, 70, False),
    ]
    s.commit(plan)
    s.remove(1)
    plan = s.plan()
    assert [(a.id, a.past, a.rows, a.reaches) for a in plan] == [(2, 70, 100, False)]
    s.commit(plan)
    assert [(a.id, a.past, a.rows, a.reaches) for a in s.plan()] == [
        (2, 170, 30, True),
        (3, 0, 10, True),
    ]


def test_a_plan_that_is_not_committed_is_made_again() -> None:
    s = scheduler()
    s.add(1, 150, 150)
    assert s.plan() == s.plan()


def test_who_does_not_fit_waits_and_nobody_overtakes() -> None:
    s = scheduler(blocks=4)
    s.add(1, 10, 2 * KV_BLOCK)
    s.add(2, 10, 3 * KV_BLOCK)
    s.add(3, 10, KV_BLOCK)
    assert [a.id for a in s.plan()] == [1]
    assert (s.running, s.waiting) == (1, 2)
    s.remove(1)
    s.check_integrity()
    assert [a.id for a in s.plan()] == [2, 3]
    s.check_integrity()


def test_parallel_is_a_limit() -> None:
    s = scheduler(parallel=2)
    for id in range(4):
        s.add(id, 1, 1)
    assert [a.id for a in s.plan()] == [0, 1]
    s.remove(0)
    s.remove(3)
    s.remove(17)
    assert [a.id for a in s.plan()] == [1, 2]


def test_extending_asks_for_one_more() -> None:
    s = scheduler()
    s.add(1, 5, 6)
    s.commit(s.plan())
    assert s.plan() == []
    s.extend(1)
    assert [(a.past, a.rows, a.reaches) for a in s.plan()] == [(5, 1, True)]
