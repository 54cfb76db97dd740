"""How much state an engine holds, how keys and values are kept, and where prefixes are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.backends.base import KV_BLOCK, StateCache
from strata.backends.kv_types import KVType, choose_kv_type
from strata.engine.runner import Runner
from strata.errors import UsageError
from strata.kv import (
    BlockPool,
    KVCacheManager,
    NoOffload,
    NoPrefixCache,
    Offload,
    PrefixCache,
    least_blocks,
    no_room,
    pool_blocks,
)
from strata.program import Model
from strata.records import dataclass

if TYPE_CHECKING:
    from strata.kv.store import PrefixStore
    from strata.kv.store_directory import StoreDirectory


@dataclass(frozen=True)
class StoreSettings:
    """A directory of prefixes that outlives the process.

    ``model`` tells models apart by their content (``strata.formats.fingerprint``), ``label`` says
    to people which it is, and ``unchanged`` whether its files are still what that was made of. What
    people wrote can be read from the directory by those who may read it, as from any log of
    prompts.
    """

    directory: StoreDirectory
    model: str
    unchanged: Callable[[], bool]
    label: str = ""


@dataclass(frozen=True)
class KVSettings:
    """``type`` None is the backend's choice. ``blocks`` says how many blocks each group of state
    has, as a Plan does; None is as many as all parallel requests can need, in ``nbytes`` at most
    where that is given. ``prefix_cache`` finds prefixes again while their blocks are not needed
    otherwise; ``store`` keeps them on disk as well."""

    type: str | None = None
    blocks: tuple[int, ...] | None = None
    nbytes: int | None = None
    prefix_cache: bool = True
    store: StoreSettings | None = None


def state_blocks(
    settings: KVSettings,
    kv_type: KVType,
    model: Model,
    *,
    context: int,
    parallel: int,
    step_rows: int,
) -> tuple[int, ...]:
    """Blocks of each group of a model's state; UsageError if ``settings`` leave no room for one
    request of ``context`` positions."""
    groups = model.groups
    sizes = [kv_type.block_nbytes(model.state, group) for group in groups]
    if settings.blocks is not None:
        least = least_blocks(groups, context=context, step_rows=step_rows)
        if any(has < n for has, n in zip(settings.blocks, least, strict=True)):
            raise UsageError(
                f"KV blocks {settings.blocks} do not hold a context of {context} positions, which "
                f"takes {least}: give more, or ask for a smaller context"
            )
        return settings.blocks
    blocks = pool_blocks(
        groups,
        sizes,
        context=context,
        parallel=parallel,
        step_rows=step_rows,
        nbytes=settings.nbytes,
    )
    if blocks is None:
        assert settings.nbytes is not None
        raise no_room(
            groups,
            sizes,
            context=context,
            step_rows=step_rows,
            nbytes=settings.nbytes,
            kv_type=kv_type.name,
        )
    return blocks


@dataclass(frozen=True)
class SequenceMemory:
    """The memory of sequences' state, who hands its blocks out, and who keeps full ones."""

    kv_type: KVType
    state: StateCache
    manager: KVCacheManager
    offload: Offload


def make_memory(
    settings: KVSettings,
    runner: Runner,
    *,
    context: int,
    parallel: int,
    step_rows: int,
    token_s: Callable[[], float | None],
) -> SequenceMemory:
    """Memory for ``parallel`` requests of ``context`` positions; UsageError if ``settings`` leave
    no room for one. ``token_s`` says what computing a token takes, as far as known."""
    model = runner.model
    kv_type = choose_kv_type(settings.type, runner.backend.kv_types)
    blocks = state_blocks(
        settings, kv_type, model, context=context, parallel=parallel, step_rows=step_rows
    )
    if settings.store is not None and not settings.prefix_cache:
        raise UsageError("a store of prefixes needs the prefix cache")
    state = runner.state_cache(blocks, kv_type)
    groups, pools = model.groups, [BlockPool(count) for count in blocks]
    index = PrefixCache(groups, pools) if settings.prefix_cache else NoPrefixCache()
    offload: Offload = NoOffload()
    if settings.store is not None:
        from strata.kv.store_offload import StoreOffload

        stores = _stores(settings.store, runner, kv_type, state)
        offload = StoreOffload(groups, stores, state, pools, token_s, settings.store.unchanged)
    manager = KVCacheManager(groups, pools, index, state, offload, step_rows=step_rows)
    return SequenceMemory(kv_type, state, manager, offload)


def _stores(
    settings: StoreSettings, runner: Runner, kv_type: KVType, state: StateCache
) -> list[PrefixStore]:
    """One store for each group of state. The identity of each is everything that the bits depend
    on; the Programs hold what the header says of RoPE."""
    import hashlib

    from strata.kv.store import PrefixStore

    model = runner.model
    stores = []
    for number, group in enumerate(model.groups):
        parts = (
            settings.model,
            model.segments,
            model.state,
            group,
            runner.backend.numerics,
            kv_type.name,
            KV_BLOCK,
        )
        identity = hashlib.sha256(repr(parts).encode()).digest()
        size = state.block_nbytes(number)
        label = f"{settings.label}, {kv_type.name}"
        stores.append(PrefixStore(settings.directory, identity, size, label))
    return stores
