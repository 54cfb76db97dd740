"""What a machine can do, what a run will cost, and the Plan that says how it is done."""

from __future__ import annotations

from strata.machine.machine import (
    AttentionRate,
    Cache,
    DiskRate,
    KernelRate,
    Machine,
    ReadRate,
)
from strata.machine.values import ValueFileError, from_json, to_json
from strata.plan.outline import Outline, outline
from strata.plan.plan import (
    Choice,
    Limits,
    MemoryShares,
    Plan,
    Prediction,
    Workload,
)
from strata.plan.planner import BudgetTooSmall, plan

__all__ = [
    "AttentionRate",
    "BudgetTooSmall",
    "Cache",
    "Choice",
    "DiskRate",
    "KernelRate",
    "Limits",
    "Machine",
    "MemoryShares",
    "Outline",
    "Plan",
    "Prediction",
    "ReadRate",
    "ValueFileError",
    "Workload",
    "from_json",
    "outline",
    "plan",
    "to_json",
]
