"""Policies of a cache of experts, by counts on visits that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import strata._native as _native
from strata.plan.expert_policies import AHEAD, SURE_OF, Visit, hit_rate
from strata.program.cost import distinct_experts
from support import expert_policies
from support.expert_policies import (
    Belady,
    DecayingFrequency,
    LeastRecentlyUsed,
    Policy,
    StaticHot,
    SureNext,
    replay,
)

LAYERS, EXPERTS, CHOSEN = 6, 32, 4
SIZES = [EXPERTS] * LAYERS


def routes(tokens: int, skew: float, sticky: float = 0.0, seed: int = 1) -> list[Visit]:
    """Each layer prefers other experts; ``sticky`` is how often a choice of before comes again."""
    random = np.random.default_rng(seed)
    weights = np.arange(1, EXPERTS + 1) ** -skew
    prefers = [random.permutation(weights / weights.sum()) for _ in range(LAYERS)]
    last: list[Sequence[int]] = [()] * LAYERS
    visits: list[Visit] = []
    for _ in range(tokens):
        for layer in range(LAYERS):
            kept = [e for e in last[layer] if random.random() < sticky]
            drawn = random.choice(EXPERTS, EXPERTS, replace=False, p=prefers[layer])
            chosen = [*kept, *(int(e) for e in drawn if e not in kept)][:CHOSEN]
            last[layer] = chosen
            visits.append(one(layer, sorted(chosen)))
    return visits


def one(layer: int, chosen: Sequence[int]) -> Visit:
    """A step of one row."""
    return Visit(layer, 1, chosen, [1] * len(chosen))


def policies(visits: Sequence[Visit], past: Sequence[Visit]) -> dict[str, Policy]:
    return {
        "lru": LeastRecentlyUsed(),
        "lfu": DecayingFrequency(SIZES),
        "hot": StaticHot.of(past, SIZES),
        "belady": Belady(visits, SIZES),
    }


def rates(visits: Sequence[Visit], slots: int, past: Sequence[Visit] = ()) -> dict[str, float]:
    chosen = policies(visits, past)
    return {name: replay(visits, SIZES, slots, p).hit_rate for name, p in chosen.items()}


@pytest.mark.parametrize("slots", [1, 3, 9, 24, 60, LAYERS * EXPERTS])
@pytest.mark.parametrize("skew", [0.0, 1.2])
def test_nobody_is_better_than_who_knows_what_comes(slots: int, skew: float) -> None:
    visits, past = routes(120, skew, sticky=0.3), routes(120, skew, seed=2)
    got = rates(visits, slots, past)
    assert max(got.values()) == got["belady"]
    assert all(0 <= rate <= 1 for rate in got.values())


def test_with_room_for_all_each_is_read_once() -> None:
    visits = routes(100, 0.8)
    every = len({(visit.layer, e) for visit in visits for e in visit.experts})
    for policy in policies(visits, visits).values():
        assert replay(visits, SIZES, LAYERS * EXPERTS, policy).misses == every


@pytest.mark.parametrize("slots", [9, 12, 16, 20])
def test_below_the_cycle_of_a_token_there_is_no_cliff(slots: int) -> None:
    """The same experts in every token, more than there are slots: the recent ones are all gone
    when they are needed again, the others are there as often as there is room."""
    cycle = [one(layer, [1, 5, 9, 20]) for layer in range(LAYERS)]
    visits = cycle * 50
    got = rates(visits, slots, visits)
    assert got["lru"] == 0
    needed = LAYERS * CHOSEN
    least = (slots - CHOSEN) / needed * (1 - 2 / 50)
    assert got["lfu"] >= least
    assert got["lfu"] <= got["belady"] <= slots / needed


def test_a_prompt_in_which_all_are_needed_keeps_what_it_can() -> None:
    """Sweeps of many rows need every expert; some slots let them through, others keep theirs."""
    visits = [one(layer, range(EXPERTS)) for layer in range(LAYERS)] * 10
    slots = 100
    got = rates(visits, slots, visits)
    assert got["lru"] == 0
    assert got["lfu"] >= 0.9 * (slots - AHEAD - 1) / (LAYERS * EXPERTS) * 9 / 10
    # What is read before its turn passes, too.
    sure = slots // SURE_OF
    found = replay(visits, SIZES, slots, DecayingFrequency(SIZES), sure).hit_rate
    assert found >= 0.9 * (slots - AHEAD - 1 - sure) / (LAYERS * EXPERTS) * 9 / 10
    assert found < got["lfu"]


@pytest.mark.parametrize("slots", [24, 48, 96])
def test_uses_count_more_than_when_they_were(slots: int) -> None:
    visits, past = routes(300, 1.0), routes(300, 1.0, seed=1)
    got = rates(visits, slots, past)
    assert got["lfu"] > got["lru"]
    assert got["hot"] > got["lru"]


def together(visits: Sequence[Visit]) -> list[Visit]:
    """The same rows in one step."""
    out = []
    for layer in range(LAYERS):
        chosen = [e for visit in visits if visit.layer == layer for e in visit.experts]
        experts, uses = np.unique(chosen, return_counts=True)
        out.append(Visit(layer, len(visits) // LAYERS, experts.tolist(), uses.tolist()))
    return out


@pytest.mark.parametrize(("slots", "decay"), [(24, 0.99), (48, 1.0), (96, 0.99)])
def test_a_prompt_teaches_what_as_many_tokens_would(slots: int, decay: float) -> None:
    """However its rows are cut into steps, and from the first token after it on."""
    visits = routes(152, 1.2)
    prompt, answer = visits[: 128 * LAYERS], visits[128 * LAYERS :]
    found = []
    for rows in (1, 128):
        parts = [prompt[i : i + rows * LAYERS] for i in range(0, len(prompt), rows * LAYERS)]
        before = [visit for part in parts for visit in together(part)]
        runs = [
            replay(read, SIZES, slots, DecayingFrequency(SIZES, decay)).hits
            for read in (before, [*before, *answer])
        ]
        found.append((runs[1] - runs[0]) / (len(answer) * CHOSEN))
    assert max(found) - min(found) < 0.03
    assert found[0] > 0.3


@pytest.mark.parametrize(("sticky", "gains"), [(0.0, -0.01), (0.8, 0.05)])
def test_what_is_used_now_counts_more_where_choices_stick(
    sticky: float, gains: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    visits = routes(120, 0.5, sticky)
    got = replay(visits, SIZES, 72, DecayingFrequency(SIZES)).hit_rate
    monkeypatch.setattr(expert_policies, "RECENT", 0.0)
    assert got - replay(visits, SIZES, 72, DecayingFrequency(SIZES)).hit_rate > gains


def test_what_is_hot_changes_and_is_followed() -> None:
    first, then = routes(200, 1.5, seed=1), routes(400, 1.5, seed=9)
    policy = DecayingFrequency(SIZES)
    replay(first, SIZES, 48, policy)
    assert replay(then, SIZES, 48, policy).hit_rate > 0.9 * rates(then, 48)["lfu"]


def test_a_few_visits_by_hand() -> None:
    visits = [one(0, [0, 1]), one(0, [0, 2]), one(0, [0, 1])]
    # Two slots: one of them is always in use, and what is used less often gives way.
    assert replay(visits, [3], 2, DecayingFrequency([3])).hits == 2
    assert replay(visits, [3], 3, LeastRecentlyUsed()).hits == 3
    assert replay([], [3], 1, LeastRecentlyUsed()).hit_rate == 0


@pytest.mark.parametrize("slots", [1, 5, 20, 48, 96, 180])
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_what_is_sure_to_be_needed_is_read_before(slots: int, skew: float) -> None:
    """Natively as in Python, with steps of many rows and of few, one of them broken off; what was
    read before its turn is missing when it is needed, as it was read for that."""
    single = routes(90, skew)
    parts, at = [], 0
    for rows in (24, 1, 1, 40, 9, 1, 12, 1, 1):
        parts += together(single[at * LAYERS : (at + rows) * LAYERS])
        at += rows
    visits = [*parts[: 3 * LAYERS + 2], *parts[4 * LAYERS :]]
    for name, policy in (
        ("frequency", DecayingFrequency(SIZES)),
        ("recent", LeastRecentlyUsed()),
        ("belady", Belady(visits, SIZES)),
    ):
        want = replay(visits, SIZES, slots, policy, slots // SURE_OF)
        got = _native.replay_experts(SIZES, visits, slots, name, sure=slots // SURE_OF)
        assert got == (want.hits, want.misses)


@pytest.mark.parametrize(
    ("layers", "experts", "top_k", "rows"),
    [
        (12, 8, 2, 1),
        (24, 32, 4, 1),
        (12, 8, 2, 24),
        (24, 32, 4, 24),
        (12, 8, 2, 512),
        (24, 32, 4, 512),
    ],
)
def test_what_a_plan_expects_is_what_the_simulator_finds(
    layers: int, experts: int, top_k: int, rows: int
) -> None:
    """Within three points where all are chosen alike, whether the next layer's are read before
    their turn or not."""
    random = np.random.default_rng(1)
    visits = []
    for step in range((200 if rows == 1 else 40) * layers):
        chosen = np.tile(np.arange(experts), rows * top_k // experts)
        if rows < 100:
            drawn = [random.choice(experts, top_k, replace=False) for _ in range(rows)]
            chosen = np.concatenate(drawn)
        numbers, uses = np.unique(chosen, return_counts=True)
        visits.append(Visit(step % layers, rows, numbers.tolist(), uses.tolist()))
    total, needed = layers * experts, distinct_experts(experts, top_k, rows)
    for share in (1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16):
        slots = int(share * total)
        for sure in (0, slots // 16, slots // SURE_OF) if needed >= 0.9 * experts else (0,):
            given = [experts] * layers, visits, slots, "frequency"
            hits, misses = _native.replay_experts(*given, len(visits) // 2, sure=sure)
            expected = hit_rate(total, layers, slots, needed, sure)
            assert hits / (hits + misses) == pytest.approx(expected, abs=0.03), (slots, sure)


def test_hit_rates_of_all_and_of_nothing() -> None:
    assert hit_rate(0, 0, 0, 0) == hit_rate(100, 2, 2, 50) == hit_rate(100, 1, 9, 50) == 0
    assert hit_rate(100, 10, 100, 5) == hit_rate(100, 10, 101, 5, 25) == 1


def test_it_is_not_sure_any_more_where_little_was_needed() -> None:
    sure = SureNext()
    assert not sure.ask(32, 4, 16)  # 88 % of all
    assert sure.ask(32, 4, 18)
    sure.came(20, 10)
    tries = [sure.ask(32, 4, 100) for _ in range(34)]
    assert [i for i, asked in enumerate(tries) if asked] == [16, 33]
    sure.came(200, 190)
    assert sure.ask(32, 4, 100)
