"""What the tests' own process takes, where a budget begins with it."""

from __future__ import annotations

import gc

from strata.memory import process_memory


def settled_bytes() -> int:
    """Bytes of this process, without what earlier tests have left to be collected: a model that is
    loaded collects it, and would find more room than there seemed to be."""
    gc.collect()
    return process_memory().total
