"""The mix is the best one that fits."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import strata.quantizer.allocate as module
from strata.quantizer.allocate import Choice, NoRoom, allocate


def random_tensors(seed: int, count: int = 6, kinds: int = 4) -> list[list[Choice]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Choice(str(i), int(rng.integers(1, 60)), float(rng.exponential()))
            for i in range(rng.integers(1, kinds + 1))
        ]
        for _ in range(count)
    ]


def best(tensors: list[list[Choice]], budget: int) -> float:
    sums = ((sum(c.nbytes for c in p), sum(c.loss for c in p)) for p in product(*tensors))
    return min(loss for size, loss in sums if size <= budget)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_what_trying_all_gives_and_falls_with_room(seed: int) -> None:
    tensors = random_tensors(seed)
    least = sum(min(c.nbytes for c in t) for t in tensors)
    before = np.inf
    for budget in range(least, least + 120, 7):
        chosen = allocate(tensors, budget)
        assert sum(c.nbytes for c in chosen) <= budget
        assert all(c in t for c, t in zip(chosen, tensors, strict=True))
        loss = sum(c.loss for c in chosen)
        assert loss == pytest.approx(best(tensors, budget), rel=1e-12)
        assert loss <= before + 1e-12
        before = loss
    with pytest.raises(NoRoom, match="too small"):
        allocate(tensors, least - 1)


def test_many_sums_are_cut_to_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(3, 40, 5)
    budget = sum(c.nbytes for t in tensors for c in t) // 6
    budget = max(budget, sum(min(c.nbytes for c in t) for t in tensors) + 50)
    exact = sum(c.loss for c in allocate(tensors, budget))
    monkeypatch.setattr(module, "_MOST_POINTS", 200)
    chosen = allocate(tensors, budget)
    assert sum(c.nbytes for c in chosen) <= budget
    assert exact <= sum(c.loss for c in chosen) < 1.2 * exact
