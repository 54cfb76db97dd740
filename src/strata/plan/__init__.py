"""What a machine can do, what a run will cost, and the Plan that says how it is done."""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from strata.machine.machine import (
        AttentionRate,
        Cache,
        DiskRate,
        KernelRate,
        Machine,
        ReadRate,
    )
    from strata.machine.values import ValueFileError, from_json, to_json
    from strata.plan.outline import Outline
    from strata.plan.plan import (
        Choice,
        Limits,
        MemoryShares,
        Plan,
        Prediction,
        Workload,
    )
    from strata.plan.planner import BudgetTooSmall

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
    "to_json",
]

# Most runs make no Plan: its rooms are entered when a name is first used.
_HOMES = {
    "AttentionRate": "strata.machine.machine",
    "BudgetTooSmall": "strata.plan.planner",
    "Cache": "strata.machine.machine",
    "Choice": "strata.plan.plan",
    "DiskRate": "strata.machine.machine",
    "KernelRate": "strata.machine.machine",
    "Limits": "strata.plan.plan",
    "Machine": "strata.machine.machine",
    "MemoryShares": "strata.plan.plan",
    "Outline": "strata.plan.outline",
    "Plan": "strata.plan.plan",
    "Prediction": "strata.plan.plan",
    "ReadRate": "strata.machine.machine",
    "ValueFileError": "strata.machine.values",
    "Workload": "strata.plan.plan",
    "from_json": "strata.machine.values",
    "to_json": "strata.machine.values",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata.plan' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
