"""How much KV an engine holds, of which type, and where prefixes are kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from strata.backends.base import KV_BLOCK, KVCache
from strata.backends.kv_types import KVType, choose_kv_type
from strata.engine.runner import Runner
from strata.errors import UsageError
from strata.kv import (
    BlockPool,
    Keeper,
    KnownPrefixes,
    KVSpace,
    NoKeeper,
    NoPrefixes,
    blocks_for,
)
from strata.kv.store import PrefixStore
from strata.kv.store_keeper import StoreKeeper
from strata.program import Model
from strata.sizes import format_size


@dataclass(frozen=True)
class StoreSettings:
    """A directory of prefixes that outlives the process, and the most bytes it may take.

    ``model`` tells models apart by their content (``strata.formats.fingerprint``). What people
    wrote can be read from the directory by those who may read it, as from any log of prompts.
    """

    directory: Path
    nbytes: int
    model: str


@dataclass(frozen=True)
class KVSettings:
    """``type`` None is the backend's choice; ``nbytes`` None is as much as all parallel requests
    can need. ``prefix_cache`` finds prefixes again while their blocks are not needed otherwise;
    ``store`` keeps them on disk as well."""

    type: str | None = None
    nbytes: int | None = None
    prefix_cache: bool = True
    store: StoreSettings | None = None


def check_room(settings: KVSettings, kv_type: KVType, model: Model, context: int) -> None:
    """UsageError if ``settings`` leave no room for one request of ``context`` positions."""
    needed = blocks_for(context) * kv_type.block_nbytes(model.kv)
    if settings.nbytes is not None and settings.nbytes < needed:
        raise UsageError(
            f"{format_size(settings.nbytes)} of KV do not hold a context of {context} positions "
            f"as {kv_type.name}, which takes {format_size(needed)}: give more, or ask for a "
            "smaller context"
        )


def make_space(
    settings: KVSettings, runner: Runner, *, context: int, parallel: int
) -> tuple[KVType, KVCache, KVSpace, Keeper]:
    """The KV type and memory, who hands its blocks out, and who keeps full ones.

    UsageError if ``settings`` leave no room for one request of ``context`` positions.
    """
    kv_type = choose_kv_type(settings.type, runner.backend.kv_types)
    block_nbytes = kv_type.block_nbytes(runner.model.kv)
    blocks = parallel * blocks_for(context)
    if settings.nbytes is not None:
        blocks = min(blocks, settings.nbytes // block_nbytes)
    check_room(settings, kv_type, runner.model, context)
    if settings.store is not None and not settings.prefix_cache:
        raise UsageError("a store of prefixes needs the prefix cache")
    kv = runner.kv_cache(blocks, kv_type)
    pool = BlockPool(blocks)
    keeper = _keeper(settings.store, runner, kv_type, kv, pool)
    prefixes = KnownPrefixes(pool) if settings.prefix_cache else NoPrefixes()

    def copy(source: int, target: int) -> None:
        kv.block(target)[:] = kv.block(source)

    return kv_type, kv, KVSpace(pool, prefixes, copy, keeper), keeper


def _keeper(
    settings: StoreSettings | None, runner: Runner, kv_type: KVType, kv: KVCache, pool: BlockPool
) -> Keeper:
    if settings is None:
        return NoKeeper()
    # Everything that the bits of KV depend on; the Programs hold what the header says of RoPE.
    model = runner.model
    parts = (
        settings.model,
        model.segments,
        model.kv,
        runner.backend.numerics,
        kv_type.name,
        KV_BLOCK,
    )
    identity = hashlib.sha256(repr(parts).encode()).digest()
    store = PrefixStore(settings.directory, identity, kv.block(0).nbytes, settings.nbytes)
    return StoreKeeper(store, kv, pool)
