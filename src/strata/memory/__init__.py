"""Memory as it is owned, and as the system counts it."""

from __future__ import annotations

from strata.memory.ledger import Ledger, LedgerAccount, LedgerError
from strata.memory.process import ProcessMemory, cgroup_peak, peak_bytes, process_memory

__all__ = [
    "Ledger",
    "LedgerAccount",
    "LedgerError",
    "ProcessMemory",
    "cgroup_peak",
    "peak_bytes",
    "process_memory",
]
