"""How many requests together give the most tokens a second."""

from __future__ import annotations

from itertools import pairwise

import pytest

from strata.plan import BudgetTooSmall, Limits, Outline, Workload
from strata.plan.throughput import best, throughput
from support.described import machine, model


@pytest.fixture(scope="module")
def sizes() -> Outline:
    return model("llama-3.1-8b")


def test_streamed_weights_are_shared_until_computing_decides(sizes: Outline) -> None:
    work = Workload(128, 1, 512, 128)
    found = throughput(sizes, machine("laptop"), Limits(2 * 10**9), work, 8)
    assert [t.together for t in found] == [1 << n for n in range(len(found))]
    assert found[0].reading_decides
    # More together give more while reading decides.
    for one, two in pairwise(found):
        assert two.plan.parallel == 2 * one.plan.parallel
        if two.reading_decides:
            assert two.tok_s > one.tok_s
    chosen = best(found)
    assert chosen.tok_s >= 0.99 * max(t.tok_s for t in found)
    assert chosen.together > 1
    assert all(t.plan.predicted.memory.total <= 2 * 10**9 for t in found)


def test_a_budget_for_none_is_refused(sizes: Outline) -> None:
    with pytest.raises(BudgetTooSmall):
        throughput(sizes, machine("laptop"), Limits(10**8), Workload(128, 1, 512, 128))
