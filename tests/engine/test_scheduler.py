"""The scheduler alone: integers in, integers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from strata.backends.base import KV_BLOCK
from strata.decode import Draft
from strata.engine.prompt_slices import PromptSlices
from strata.engine.scheduler import Advance, Propose, Scheduler
from strata.kv import BlockPool, KVCacheManager, NoPrefixCache, PrefixCache, PrefixIndex
from strata.program import StateGroup

Shown = list[tuple[int, int, int, int]]
FULL = (StateGroup((0,)),)


class Copies:
    """Blocks that hold nothing."""

    def copy(self, group: int, source: int, target: int) -> None:
        """Nothing to copy."""


def scheduler(
    blocks: int = 8,
    parallel: int = 4,
    token_budget: int = 100,
    prefill_budget: Sequence[int] = (),
    known: bool = False,
    groups: Sequence[StateGroup] = FULL,
) -> Scheduler:
    pools = [BlockPool(blocks) for _ in groups]
    index: PrefixIndex = PrefixCache(groups, pools) if known else NoPrefixCache()
    manager = KVCacheManager(groups, pools, index, Copies(), step_rows=token_budget)
    return Scheduler(
        manager,
        parallel=parallel,
        token_budget=token_budget,
        slices=PromptSlices(prefill_budget),
    )


def shown(plan: list[Advance]) -> Shown:
    return [(a.id, a.past, a.rows, a.needs_logits) for a in plan]


def prompt(length: int, first: int = 0) -> list[int]:
    return [first, *range(1, length)]


def commit(s: Scheduler, plan: list[Advance], token: int = 5) -> None:
    """Commit, and one token more for who reached its last one."""
    for a in plan:
        s.commit(a, [token] if a.needs_logits else [])
    s.check_integrity()


def step(s: Scheduler, token: int = 5) -> Shown:
    plan = s.plan()
    s.check_integrity()
    commit(s, plan, token)
    return shown(plan)


def test_the_oldest_prompt_gets_half_and_the_shortest_ones_the_rest() -> None:
    s = scheduler()
    for id, length in ((1, 200), (2, 90), (3, 10)):
        s.add(id, prompt(length, id))
    plan = s.plan()
    assert shown(plan) == [(1, 0, 50, 0), (2, 0, 40, 0), (3, 0, 10, 1)]
    commit(s, plan)
    assert shown(s.plan()) == [(1, 50, 50, 0), (2, 40, 49, 0), (3, 10, 1, 1)]


def test_equal_prompts_are_served_in_order() -> None:
    s = scheduler()
    for id in (1, 2):
        s.add(id, prompt(90, id))
    assert step(s) == [(1, 0, 90, 1), (2, 0, 10, 0)]


def test_answers_come_first_and_prompts_within_their_budget() -> None:
    s = scheduler(prefill_budget=[9, 7], token_budget=20)
    for id in (1, 2):
        s.add(id, [id])
    s.add(3, prompt(30))
    assert step(s) == [(1, 0, 1, 1), (2, 0, 1, 1), (3, 0, 7, 0)]
    s.remove(1)
    s.remove(2)
    # Nobody to be slowed down: the whole budget.
    assert step(s) == [(3, 7, 20, 0)]


@pytest.mark.parametrize(
    ("answers", "prompts", "tokens"),
    # Between two that are known by its place, a prompt counting as one more beside the others.
    [
        (1, 1, 10),
        (2, 1, 20),
        (3, 1, 25),
        (4, 1, 30),
        (7, 1, 30),
        (1, 2, 40),
        (2, 2, 50),
        (1, 4, 120),
    ],
)
def test_a_budget_is_by_all_that_are_there(answers: int, prompts: int, tokens: int) -> None:
    s = scheduler(64, 8, 200, prefill_budget=(10, 20, 30))
    for id in range(answers + prompts):
        s.add(id, [id] if id < answers else prompt(300, id))
    rows = step(s)
    assert sum(n for id, _, n, _ in rows if id >= answers) == tokens


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
    commit(s, s.plan(), 9)
    plan = s.plan()
    assert shown(plan) == [(1, 5, 1, 1)]
    assert plan[0].tokens == (9,)


def test_blocks_are_taken_as_they_are_needed() -> None:
    s = scheduler(token_budget=KV_BLOCK)
    s.add(1, prompt(3 * KV_BLOCK))
    for blocks in (1, 2, 3, 4):
        assert len(s.plan()[0].tables[0]) == blocks
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
    assert step(s)[0] == (2, 0, 2 * KV_BLOCK + 1, 1)


def test_who_gave_way_comes_before_those_who_have_not_begun() -> None:
    s = scheduler(blocks=4, parallel=2, token_budget=500)
    for id in (1, 2, 3):
        s.add(id, prompt(KV_BLOCK - 1, id))
    while not s.preemptions:
        assert 3 not in [id for id, *_ in step(s)]
    s.remove(1)
    # Only one of the two fits.
    assert [id for id, *_ in step(s)] == [2]


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
    s = scheduler(token_budget=60, known=True)
    for id in range(3):
        s.add(id, prompt(100))
    s.add(9, [9])
    assert step(s) == [(0, 0, 59, 0), (9, 0, 1, 1)]
    # What is left of the prompt is less than a block: nobody waits for that.
    plan = s.plan()
    assert [(a.id, a.past, a.rows) for a in plan] == [
        (0, 59, 41),
        (1, 59, 18),
        (9, 1, 1),
    ]  # fmt: skip
    commit(s, plan)
    plan = s.plan()
    while any(a.needs_logits == 0 for a in plan):
        commit(s, plan)
        plan = s.plan()
    assert s.running == 4
    tables = {a.id: a.tables[0] for a in plan}
    # The full block is shared; of the other one each has its own.
    assert len({tables[id][0] for id in range(3)}) == 1
    assert len({tables[id][1] for id in range(3)}) == 3


def test_answers_to_one_prompt_wait_for_it_and_lack_one_token_then() -> None:
    s = scheduler(parallel=4, known=True, token_budget=500)
    for id in range(4):
        s.add(id, prompt(200))
    assert step(s) == [(0, 0, 200, 1)]
    assert step(s) == [(0, 200, 1, 1), *((id, 199, 1, 1) for id in (1, 2, 3))]


def test_a_prompt_that_begins_as_another_waits_for_that_part() -> None:
    s = scheduler(parallel=4, known=True, token_budget=500)
    s.add(0, prompt(200))
    s.add(1, [*prompt(150), *[3] * 50])
    s.add(2, [*prompt(60), *[3] * 50])
    assert [(id, past) for id, past, *_ in step(s)] == [(0, 0), (2, 0)]
    assert [(id, past, rows) for id, past, rows, _ in step(s)] == [
        (0, 200, 1),
        (1, 150, 50),
        (2, 110, 1),
    ]


def test_answers_beyond_the_places_wait_and_find_the_prompt() -> None:
    s = scheduler(parallel=2, known=True)
    for id in range(4):
        s.add(id, prompt(70))
    assert step(s) == [(0, 0, 70, 1)]
    assert step(s) == [(0, 70, 1, 1), (1, 69, 1, 1)]
    s.remove(0)
    assert step(s) == [(1, 70, 1, 1), (2, 69, 1, 1)]
    s.remove(1)
    s.remove(2)
    # Nobody has it under way any more: the full block was kept.
    assert step(s) == [(3, KV_BLOCK, 6, 1)]


def test_who_waits_for_one_that_ends_early_computes_itself() -> None:
    s = scheduler(token_budget=60, known=True)
    for id in range(3):
        s.add(id, prompt(190))
    assert step(s) == [(0, 0, 60, 0)]
    s.remove(0)
    assert [id for id, *_ in step(s)] == [1]


def test_without_the_prefix_cache_everybody_computes() -> None:
    s = scheduler(token_budget=500)
    for id in range(2):
        s.add(id, prompt(100))
    assert step(s) == [(0, 0, 100, 1), (1, 0, 100, 1)]


def test_who_waits_for_recurrent_state_finds_it() -> None:
    groups = (StateGroup((0,)), StateGroup((1,), recurrent=True))
    s = scheduler(blocks=60, token_budget=400, known=True, groups=groups)
    s.add(0, prompt(900))
    s.add(1, [*prompt(700), *[3] * 50])
    s.add(2, [*prompt(500), *[3] * 50])
    # There will be states at 512 and 896 positions: for one it is worth waiting, for one not.
    waited = {}
    for number in range(8):
        for id, past, *_ in step(s):
            waited.setdefault(id, (number, past))
    assert waited == {0: (0, 0), 1: (4, 512), 2: (0, 0)}


def test_an_interrupt_while_somebody_is_admitted_leaves_it_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s = scheduler(token_budget=500, known=True)
    s.add(0, prompt(200))
    step(s)
    s.add(1, prompt(150))

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(KVCacheManager, "loadable", interrupted)
        with pytest.raises(KeyboardInterrupt):
            s.plan()
    s.check_integrity()
    assert (s.running, s.waiting) == (1, 1)
    assert step(s)[1] == (1, 149, 1, 1)


def guessing(draft: Draft) -> Propose:
    """The same for every sequence."""
    return lambda tokens, rows, room: dict.fromkeys(tokens, draft)


def guess(*tokens: int, parents: tuple[int, ...] | None = None) -> Draft:
    return Draft(tokens, parents)


def test_a_draft_is_kept_as_far_as_it_was_chosen() -> None:
    s = scheduler()
    s.add(1, prompt(10))
    commit(s, s.plan(), 50)
    for chosen, kept in (([51, 52, 53], 2), ([60], 0), ([51, 52, 53, 54, 55], 4)):
        past = s.computed(1)
        (a,) = s.plan(guessing(guess(51, 52, 53, 54)))
        assert (a.past, a.rows, a.needs_logits) == (past, 5, 5)
        s.commit(a, chosen)
        s.check_integrity()
        assert s.computed(1) == past + 1 + kept
        (a,) = s.plan()
        assert a.tokens == (chosen[-1],)


def test_a_branch_that_was_chosen_becomes_the_sequence() -> None:
    s = scheduler()
    s.add(1, prompt(KV_BLOCK - 2))
    commit(s, s.plan(), 50)
    # 51 52 53 and 51 62 63, across the edge of a block
    tree = guess(51, 52, 62, 53, 63, parents=(-1, 0, 0, 1, 2))
    (a,) = s.plan(guessing(tree))
    assert a.draft.tokens == (51, 52, 53, 62, 63)
    assert a.draft.chains() == [(0, 1, 2), (3, 4)]
    (branch,) = a.branches
    assert not set(branch[0]) & set(a.tables[0])
    s.check_integrity()
    s.commit(a, [51, 62, 63, 70])
    s.check_integrity()
    (a,) = s.plan()
    assert (a.tokens, a.past, a.tables) == ((70,), KV_BLOCK + 2, branch)
    s.remove(1)
    s.check_integrity()


def test_a_draft_pushes_nobody_out_and_shrinks() -> None:
    s = scheduler(blocks=4, token_budget=500)
    for id in (1, 2):
        s.add(id, prompt(KV_BLOCK - 1, id))
    while s.computed(1) < 2 * KV_BLOCK - 1:
        step(s)
    tree = guess(51, 61, parents=(-1, -1))
    plan = s.plan(guessing(tree))
    assert [a.draft.tokens for a in plan] == [(), ()]
    assert s.preemptions == 0


def test_a_plan_with_drafts_that_is_not_committed_holds_nothing() -> None:
    s = scheduler()
    s.add(1, prompt(10))
    commit(s, s.plan())
    tree = guess(51, 61, parents=(-1, -1))
    first = s.plan(guessing(tree))
    assert len(first[0].branches) == 1
    s.check_integrity()
    s.commit(first[0], [9])
    # What was not chosen is given back at once, not with the next plan.
    assert s._manager.unused() == [7]
    s.plan(guessing(tree))
    assert s.plan()[0].branches == ()
    s.check_integrity()
    s.plan(guessing(tree))
    s.remove(1)
    s.check_integrity()


def test_drafts_are_asked_for_together_with_the_room_that_is_left() -> None:
    s = scheduler(token_budget=10)
    for id in range(3):
        s.add(id, [id])
    commit(s, s.plan())
    s.add(3, [9, 9, 9])
    asked: list[tuple[list[int], int, int]] = []

    def propose(tokens: Mapping[int, Sequence[int]], rows: int, room: int) -> dict[int, Draft]:
        asked.append((list(tokens), rows, room))
        return {0: Draft((1, 1)), 2: Draft((1, 2))}

    plan = s.plan(propose)
    # A prompt that is not computed yet is not asked for.
    assert asked == [([0, 1, 2], 6, 4)]
    assert [a.rows for a in plan] == [3, 1, 3, 3]


def test_windows_give_blocks_back_and_are_admitted_by_what_they_hold() -> None:
    groups = (StateGroup((0,)), StateGroup((1,), window=100))
    s = scheduler(blocks=12, token_budget=64, groups=groups)
    s.add(1, prompt(600))
    for _ in range(9):
        step(s)
    full, window = s.plan()[0].tables
    assert full.count(-1) == 0
    assert window.count(-1) == len(window) - 3
    assert set(window[:-3]) == {-1}


def test_recurrent_state_is_computed_again_behind_what_was_kept() -> None:
    groups = (StateGroup((0,)), StateGroup((1,), recurrent=True))
    s = scheduler(blocks=8, groups=groups)
    s.add(1, prompt(10))
    commit(s, s.plan(), 50)
    (a,) = s.plan(guessing(guess(51, 52, 53, parents=(-1, 0, -1))))
    assert a.draft.tokens == (51, 52)
    source, target = a.tables[1]
    assert source != target
    s.commit(a, [51, 60])
    (a,) = s.plan(guessing(guess(1)))
    assert (a.past, a.tokens, a.redone, a.draft.tokens) == (10, (50, 51, 60), 2, (1,))
    assert a.tables[1][0] == source
    s.commit(a, [61])
    (a,) = s.plan()
    assert (a.past, a.tokens, a.redone) == (10, (50, 51, 60, 61), 3)
    s.commit(a, [62])
    (a,) = s.plan(guessing(guess(63)))
    assert a.tokens == (62,)
    s.commit(a, [63, 64])
    assert s.computed(1) == 16
    s.check_integrity()
