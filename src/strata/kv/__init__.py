"""Where the keys and values of sequences live: blocks of positions, handed out by number."""

from __future__ import annotations

from strata.kv.pool import BlockPool, PoolError

__all__ = ["BlockPool", "PoolError"]
