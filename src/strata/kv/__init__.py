"""Where the keys and values of sequences live: blocks of positions, handed out by number."""

from __future__ import annotations

from strata.kv.keeper import Keeper, NoKeeper
from strata.kv.pool import BlockPool, PoolError
from strata.kv.prefix import KnownPrefixes, NoPrefixes, Prefixes
from strata.kv.space import KVSpace, SequenceKV, blocks_for

__all__ = [
    "BlockPool",
    "KVSpace",
    "Keeper",
    "KnownPrefixes",
    "NoKeeper",
    "NoPrefixes",
    "PoolError",
    "Prefixes",
    "SequenceKV",
    "blocks_for",
]
