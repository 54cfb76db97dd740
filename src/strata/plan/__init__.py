"""What a machine can do, what a run will cost, and the Plan that says how it is done."""

from __future__ import annotations

from strata.plan.machine import (
    AttentionRate,
    Cache,
    DiskRate,
    KernelRate,
    Machine,
    ReadRate,
)
from strata.plan.plan import (
    Choice,
    Limits,
    MemoryShares,
    Plan,
    Prediction,
    Workload,
)
from strata.plan.values import ValueFileError, from_json, to_json

__all__ = [
    "AttentionRate",
    "Cache",
    "Choice",
    "DiskRate",
    "KernelRate",
    "Limits",
    "Machine",
    "MemoryShares",
    "Plan",
    "Prediction",
    "ReadRate",
    "ValueFileError",
    "Workload",
    "from_json",
    "to_json",
]
