"""How much of a prompt fits beside answers, by the costs of a machine."""

from __future__ import annotations

import pytest

from strata.backends.profile import SweepSize
from strata.machine import constants
from strata.machine.rates import Rates
from strata.plan.cost_model import CostModel
from strata.plan.prefill import prefill_budget
from support.described import machine, model

COSTS = CostModel(model("llama-3.2-1b"), Rates(machine("laptop"), 8), "f16")
RESIDENT = COSTS.streaming(frozenset(u.name for u in COSTS.model.units), 1e9, 0)
PROMPT, ANSWER = 256, 640


def budgets(slowdown: float, parallel: int = 16, most: int = 512) -> tuple[int, ...]:
    return prefill_budget(
        *(COSTS, RESIDENT),
        slowdown=slowdown,
        parallel=parallel,
        answer_past=ANSWER,
        prompt_past=PROMPT,
        most=most,
    )


def attention_s(size: SweepSize) -> float:
    shallow = SweepSize(size.sequences, size.rows, 0, size.logit_rows)
    return COSTS.sweep(size, RESIDENT).total_s - COSTS.sweep(shallow, RESIDENT).total_s


def seconds(decodes: int, tokens: int) -> float:
    """Rows of everybody through the products, attention of the answers and of the prompt."""
    total = COSTS.sweep(SweepSize(decodes + tokens, 1, 0, decodes), RESIDENT).total_s
    total += attention_s(SweepSize(decodes, 1, ANSWER, decodes))
    total += attention_s(SweepSize(1, tokens, PROMPT, 0)) if tokens else 0.0
    return total + decodes * constants.SERVED_TOKEN


@pytest.mark.parametrize("slowdown", [1.3, 1.4, 2.0])
def test_each_is_the_most_that_stays_within_the_slowdown(slowdown: float) -> None:
    for place, tokens in enumerate(budgets(slowdown)):
        decodes = 1 << place
        assert 1 < tokens < 512
        bound = slowdown * seconds(decodes, 0)
        assert seconds(decodes, tokens) <= bound < seconds(decodes, tokens + 1)


def test_there_is_one_for_each_doubling_up_to_all_that_run() -> None:
    assert [len(budgets(1.4, parallel)) for parallel in (1, 2, 3, 4, 16, 17)] == [1, 2, 2, 3, 5, 5]


def test_a_prompt_always_gets_on_and_never_past_a_step() -> None:
    assert set(budgets(1.0)) == {1}
    assert set(budgets(1000.0, most=40)) == {40}
