"""What more memory would buy: Plans for a range of budgets."""

from __future__ import annotations

from strata.machine import constants
from strata.machine.machine import Machine
from strata.plan.outline import Outline
from strata.plan.plan import Limits, Plan, Workload
from strata.plan.planner import Planner


def budget_table(
    model: Outline, machine: Machine, limits: Limits, workload: Workload
) -> tuple[Plan, ...]:
    """Plans from the smallest budget that does to one in which everything fits, and the given one.

    Between them lie round numbers: 1, 2 and 4 times powers of ten.
    """
    planner = Planner(model, machine, limits, workload)
    floor, full = planner.floor(), planner.everything()
    budgets = {floor, full}
    power = 100 * constants.MB
    while power < full:
        budgets |= {b for b in (power, 2 * power, 4 * power) if floor < b < full}
        power *= 10
    if limits.budget is not None and limits.budget > floor:
        budgets.add(limits.budget)
    return tuple(planner.plan(budget) for budget in sorted(budgets))
