"""Shares of a budget are those with which answers are expected soonest."""

from __future__ import annotations

import random
from itertools import product

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.server.fleet.allotment import Way, Wish, allot, at

WAYS = [Way(100, 4.0), Way(150, 2.0), Way(200, 1.0)]


def test_all_that_fits_is_given_in_full() -> None:
    wishes = [Wish("a", WAYS, away_s=9.0), Wish("b", WAYS)]
    assert allot(wishes, 400) == {"a": 200, "b": 200}
    # Nobody is made smaller where that gains nothing.
    same = [Way(100, 1.0), Way(200, 1.0)]
    assert allot([Wish("a", same, away_s=9.0), Wish("b", WAYS)], 400) == {"a": 200, "b": 200}


def test_who_is_asked_more_has_more() -> None:
    assert allot([Wish("a", WAYS, 9.0, 50.0), Wish("b", WAYS)], 300) == {"a": 200, "b": 100}
    assert allot([Wish("a", WAYS, 0.1, 50.0), Wish("b", WAYS)], 300) == {"a": 100, "b": 200}


def test_who_is_worth_least_goes() -> None:
    wishes = [Wish("a", WAYS, 1.0, 6.0), Wish("b", WAYS, 0.01, 6.0), Wish("c", WAYS)]
    assert allot(wishes, 250) == {"a": 100, "b": 0, "c": 150}
    assert allot(wishes[2:], 99) is None


def test_it_is_the_best_of_all() -> None:
    draw = random.Random(1)
    for _ in range(200):
        wishes = []
        for name in "abcd"[: draw.randint(1, 4)]:
            sizes = sorted(draw.sample(range(1, 40), 3))
            seconds = sorted((draw.random() * 9 for _ in sizes), reverse=True)
            away = draw.choice([None, draw.random() * 20])
            ways = [Way(n, s) for n, s in zip(sizes, seconds, strict=True)]
            wishes.append(Wish(name, ways, draw.random(), away))
        room = draw.randint(10, 90)
        every = [
            [*wish.ways, *([] if wish.away_s is None else [Way(0, wish.away_s)])] for wish in wishes
        ]
        costs = [
            sum(w.weight * way.seconds for w, way in zip(wishes, ways, strict=True))
            for ways in product(*every)
            if sum(way.nbytes for way in ways) <= room
        ]
        found = allot(wishes, room)
        if not costs:
            assert found is None
            continue
        assert found is not None
        assert sum(found.values()) <= room
        cost = sum(
            w.weight * (at(w.ways, found[w.name]).seconds if found[w.name] else (w.away_s or 0.0))
            for w in wishes
        )
        # More than was chosen is only ever given.
        assert cost <= min(costs) + 1e-9
