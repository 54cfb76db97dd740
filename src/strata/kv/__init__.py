"""Where the state of sequences lives: blocks of positions and slots, handed out by number."""

from __future__ import annotations

from strata.kv.manager import BlockCopier, KVCacheManager, window_blocks
from strata.kv.offload import BlockRun, NoOffload, Offload
from strata.kv.pool import BlockPool, PoolError
from strata.kv.prefix import NoPrefixCache, PrefixCache, PrefixIndex
from strata.kv.sequence import BlockTable, Branch, SequenceState, blocks_for
from strata.kv.sizing import least_blocks, no_room, pool_blocks

__all__ = [
    "BlockCopier",
    "BlockPool",
    "BlockRun",
    "BlockTable",
    "Branch",
    "KVCacheManager",
    "NoOffload",
    "NoPrefixCache",
    "Offload",
    "PoolError",
    "PrefixCache",
    "PrefixIndex",
    "SequenceState",
    "blocks_for",
    "least_blocks",
    "no_room",
    "pool_blocks",
    "window_blocks",
]
