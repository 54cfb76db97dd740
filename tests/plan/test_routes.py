"""Recorded routes: what policies come to on them, natively as in Python, and what a Plan makes of
it."""

from __future__ import annotations

import numpy as np
import pytest

import strata._native as _native
from strata.plan.expert_policies import DECAYS, Visit
from strata.plan.routes import HitCurve, Routes, curve_for
from strata.report.routes import POLICIES, apart, compare, curves
from support.expert_policies import (
    Belady,
    DecayingFrequency,
    LeastRecentlyUsed,
    Policy,
    StaticHot,
    replay,
)

EXPERTS = (9, 16, 9)


def routes(tokens: int = 60, seed: int = 1) -> Routes:
    """Skewed and sticky."""
    random = np.random.default_rng(seed)
    chosen = np.empty((tokens, len(EXPERTS), 3), np.int32)
    for layer, count in enumerate(EXPERTS):
        weights = 1.0 / np.arange(1, count + 1)
        now = np.arange(3)
        for token in range(tokens):
            if random.random() < 0.6:
                now = np.sort(random.choice(count, 3, replace=False, p=weights / weights.sum()))
            chosen[token, layer] = now
    return Routes(EXPERTS, chosen)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("slots", [1, 2, 5, 11, 20, 34])
@pytest.mark.parametrize("name", ["recent", "frequency", "static", "belady"])
def test_policies_do_natively_what_they_do_in_python(name: str, slots: int, rows: int) -> None:
    found = routes()
    visits, uses = found.visits(rows), found.uses
    policies: dict[str, Policy] = {
        "recent": LeastRecentlyUsed(),
        "frequency": DecayingFrequency(EXPERTS),
        "static": StaticHot(dict(enumerate(uses))),
        "belady": Belady(visits, EXPERTS),
    }
    want = replay(visits, EXPERTS, slots, policies[name])
    got = _native.replay_experts(list(EXPERTS), visits, slots, name, uses=uses)
    assert got == (want.hits, want.misses)


@pytest.mark.parametrize("decay", DECAYS)
def test_uses_lose_worth_natively_as_in_python(decay: float) -> None:
    found = routes()
    # A prompt, steps of one row, and of more.
    visits = [*found.visits(60), *found.visits(), *found.visits(7)]
    want = replay(visits, EXPERTS, 11, DecayingFrequency(EXPERTS, decay))
    given = (list(EXPERTS), visits, 11, "frequency")
    assert _native.replay_experts(*given, decay=decay) == (want.hits, want.misses)
    with pytest.raises(ValueError, match="worth"):
        _native.replay_experts(*given, decay=1.5)


def test_wrong_visits_are_refused() -> None:
    for visit in (
        Visit(0, 1, [1, 1], [1, 1]),
        Visit(3, 1, [1], [1]),
        Visit(0, 1, [9], [1]),
        Visit(0, 1, [1], []),
        Visit(0, 1, [1], [0]),
        Visit(0, -1, [1], [1]),
        Visit(-1, 1, [1], [1]),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            _native.replay_experts(list(EXPERTS), [visit], 3, "recent")


def test_skew_and_stickiness() -> None:
    alike = Routes((4,), np.array([[[0, 1]], [[2, 3]]] * 8, np.int32))
    assert alike.skew(0.5) == pytest.approx(0.5)
    assert alike.stickiness() == 0
    assert alike.stickiness(2) == 1
    assert alike.by_chance == 0.5
    assert alike.uses == [8, 8, 8, 8]
    one = Routes((4,), np.array([[[0, 1]]] * 8, np.int32))
    assert one.skew(0.5) == 1
    assert one.stickiness() == 1
    # Two sequences are halves of the text.
    assert alike.visits(2)[0] == (0, 2, [0, 1], [2, 2])
    assert alike.visits(4)[:2] == [(0, 4, [0, 1], [4, 4]), (0, 4, [2, 3], [4, 4])]


def test_no_policy_is_better_than_belady() -> None:
    for rows in (1, 4):
        for found in compare(routes(200), rows):
            assert set(found.rates) == set(POLICIES)
            assert all(0 <= rate <= found.rates["belady"] for rate in found.rates.values())


def test_parts_of_a_text_are_far_apart() -> None:
    """Sequences together are not behind one and the same text."""
    ids = list(range(1000))
    parts = apart(ids, 4, 100)
    assert parts == [*ids[:100], *ids[300:400], *ids[600:700], *ids[900:]]
    assert apart(ids, 1, 1000) == ids
    assert apart(ids, 10, 100) == ids


def test_curves() -> None:
    curve = HitCurve(1, 100, ((10, 0.5), (20, 0.9), (40, 1.0)))
    assert [curve.rate(n) for n in (0, 5, 10, 15, 40, 50)] == pytest.approx(
        [0, 0.25, 0.5, 0.7, 1, 1]
    )
    assert curve_for([curve], 1, 10) is curve
    assert curve_for([curve], 3, 10) is None
    # Which decay finds more depends on the slots.
    other = HitCurve(1, 100, ((10, 0.6), (20, 0.8), (40, 1.0)), 0.9)
    assert [curve_for([curve, other], 1, n) for n in (10, 20, 40)] == [other, curve, curve]
    made = [*curves(routes(200)), *curves(routes(200), 16)]
    assert [(c.rows, c.decay) for c in made] == [(r, d) for r in (1, 16) for d in DECAYS]
    assert curves(routes(100), 16) == ()
    for c in made:
        assert c.points[-1] == (sum(EXPERTS), 1.0)
