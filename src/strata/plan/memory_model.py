"""Bytes of every owner, from a model's sizes and what was chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from strata.backends.kv_types import KV_BLOCK
from strata.backends.profile import UnitProfile
from strata.kv import pool_blocks
from strata.machine import constants
from strata.plan.beside import NOTHING, Beside, admission_bytes, guard_bytes
from strata.plan.drafts import NO_DRAFTS, Drafts, branch_blocks, used_drafts
from strata.plan.outline import Outline
from strata.plan.plan import MemoryShares, Workload
from strata.plan.tokenizer_memory import tokenizer_building_bytes, tokenizer_bytes
from strata.records import dataclass


@dataclass(frozen=True)
class Sizes:
    """What is chosen before weights find their place: threads, steps and streaming.

    ``server_bytes`` are taken by who answers over HTTP, 0 where nobody does; ``process_bytes`` by
    everything that is there before the model is opened; ``beside`` says what is set aside for
    requests, templates and grammars. ``ring_bytes`` and ``expert_slots``
    are those of a run that streams, and 0 for one in which everything is resident: then
    ``request_bytes`` and ``io_threads`` are those of loading. ``kv_slots`` of the first group's
    blocks are in memory, and the others on disk, from which they pass through memory where
    ``kv_passes``; 0: all are in memory. Of the ``expert_slots`` at most ``expert_sure`` are for
    what the next layer is sure to need; None: as many as there may be. ``row_cache_bytes`` are for
    rows of tables on the disk.
    ``logit_rows`` includes those of ``drafts``.
    """

    threads: int
    max_tokens: int
    logit_rows: int
    kv_blocks: tuple[int, ...]
    context: int
    parallel: int
    kv_type: str = "f16"
    ring_bytes: int = 0
    request_bytes: int = 0
    io_threads: int = 0
    server_bytes: int = 0
    beside: Beside = NOTHING
    process_bytes: int = constants.PROCESS + constants.PROCESS_SLACK
    expert_slots: int = 0
    expert_sure: int | None = None
    row_cache_bytes: int = 0
    kv_slots: int = 0
    kv_passes: bool = True
    drafts: Drafts = NO_DRAFTS
    draft_model_bytes: int = 0

    @property
    def streams(self) -> bool:
        """Whether something is read while the model runs, beside rows of tables."""
        return self.ring_bytes > 0 or self.expert_slots > 0 or self.kv_slots > 0

    @property
    def tile_bytes(self) -> int:
        """Bytes of the largest tile for which the ring buffer is made; 0 where nothing streams."""
        return self.ring_bytes // constants.RING_TILES


def peak_while_opening(model: Outline, sizes: Sizes) -> int:
    """The peak before any weight is loaded: while the tokenizer is built."""
    # What running comes to touch of the libraries is not touched yet.
    started = sizes.process_bytes + sizes.server_bytes
    return with_peak_margin(started + tokenizer_building_bytes(model.tokenizer))


_PAGE_ROWS = 16
"""Positions whose keys or values of a layer lie within few pages."""


def peak_bytes(
    model: Outline, sizes: Sizes, resident: Collection[str], workload: Workload, process: int
) -> int:
    """The largest resident size of a process that does ``workload`` once, and takes ``process``
    bytes before: of what is reserved, KV, tables and what guessing takes are touched as far as
    there are tokens."""
    positions = min(sizes.context, workload.prompt_tokens + workload.answer_tokens)
    touched_blocks = pool_blocks(
        model.groups,
        model.profile.block_nbytes(sizes.kv_type),
        context=positions,
        parallel=sizes.parallel,
        step_rows=sizes.max_tokens,
    )
    assert touched_blocks is not None
    guessing = used_drafts(sizes.drafts, workload, positions)
    # A state that cannot be rolled back has no branches.
    recurrent = any(group.recurrent for group in model.groups)
    branches = 0 if recurrent else branch_blocks(guessing, workload)
    blocks = tuple(
        min(touched + branches, all_blocks)
        for touched, all_blocks in zip(touched_blocks, sizes.kv_blocks, strict=True)
    )
    # Guarded processes are others.
    kept = Beside(admitted_bytes=sizes.beside.admitted_bytes)
    slots = min(sizes.kv_slots, blocks[0]) if sizes.kv_slots else 0
    used = replace(sizes, context=positions, kv_blocks=blocks, process_bytes=process, beside=kept)
    rows = sizes.logit_rows - sizes.drafts.rows + guessing.rows
    # Where no block gives way nothing comes from the disk.
    passing = sizes.kv_slots < blocks[0]
    used = replace(used, kv_slots=slots, kv_passes=passing, drafts=guessing, logit_rows=rows)
    shares = memory_shares(model, used, resident)
    owned = shares.total - shares.margin
    if not sizes.kv_slots:
        # Of a sequence's last block only the pages of its positions.
        touched_rows = -(-positions // _PAGE_ROWS) * _PAGE_ROWS
        unused = -touched_rows % KV_BLOCK
        whole = zip(model.groups, model.profile.block_nbytes(sizes.kv_type), strict=True)
        last = sum(nbytes for group, nbytes in whole if not group.recurrent and not group.window)
        owned -= workload.concurrency * last * unused // KV_BLOCK
    # Of what loading takes more nothing is left when libraries are touched by the first step.
    owned -= min(constants.STARTED, shares.staging - _beside_ring(model, used))
    # Small things find room in what building the tokenizer left.
    owned -= len(model.segments) * constants.SEGMENT
    touched = min(with_peak_margin(owned), memory_shares(model, sizes, resident).total)
    return max(touched, peak_while_opening(model, used))


def server_bytes(workload: Workload) -> int:
    """What answering over HTTP takes."""
    return constants.SERVER if workload.serving else 0


def memory_shares(model: Outline, sizes: Sizes, resident: Collection[str]) -> MemoryShares:
    """Who owns how many bytes at most."""
    fixed = fixed_shares(model, sizes)
    weights = resident_bytes(model, resident)
    return _with_margin(fixed, fixed.resident + weights)


def fixed_shares(model: Outline, sizes: Sizes) -> MemoryShares:
    """The shares when no unit of weights is resident: only vectors are."""
    streams = sizes.streams
    threads = sizes.threads * constants.THREAD
    threads += sizes.io_threads * constants.READER if streams else 0
    arena = model.profile.arena_bytes(sizes.max_tokens, sizes.logit_rows)
    scratch = sizes.threads * model.profile.scratch_bytes(streams=streams)
    attention = model.profile.attention_bytes(
        *(sizes.context, sizes.parallel, sizes.threads, sizes.max_tokens),
        in_turns=sizes.kv_slots > 0,
    )
    # A choice of a token looks at one row; a step's tables and ids are small beside it.
    sampling = model.vocabulary * constants.SAMPLING_LOGIT
    staging = model.profile.loading_bytes(sizes.io_threads, sizes.request_bytes)
    slots = sizes.expert_slots * model.profile.slot_bytes
    beside_ring = _beside_ring(model, sizes)
    kv = kv_in_memory(model, sizes)
    logits = sizes.logit_rows * model.row_width * 4 + sampling
    activations = arena + scratch + attention
    # Loading comes first, where the others will be.
    staging = max(beside_ring, staging - sizes.ring_bytes - slots - kv - logits - activations)
    base = MemoryShares(
        interpreter=sizes.process_bytes
        + constants.STARTED
        + threads
        + len(model.segments) * constants.SEGMENT,
        tokenizer=tokenizer_bytes(model.tokenizer),
        resident=model.vector_bytes,
        ring=sizes.ring_bytes,
        staging=staging,
        kv=kv,
        activations=activations,
        logits=logits,
        margin=0,
        server=sizes.server_bytes + admission_bytes(sizes.beside),
        guard=guard_bytes(sizes.beside, model.vocabulary),
        experts=slots,
        drafts=sizes.drafts.nbytes + sizes.draft_model_bytes,
        rows=sizes.row_cache_bytes,
    )
    return _with_margin(base, model.vector_bytes)


def _beside_ring(model: Outline, sizes: Sizes) -> int:
    """Bytes of staging while steps run."""
    nbytes = 0
    if sizes.ring_bytes:
        nbytes = model.profile.streaming_bytes(sizes.io_threads, sizes.tile_bytes)
    if sizes.expert_slots:
        # Experts are read as what stays is loaded.
        nbytes += model.profile.loading_bytes(sizes.io_threads, sizes.request_bytes)
    return nbytes


def kv_in_memory(model: Outline, sizes: Sizes) -> int:
    """Bytes of KV in memory, with what passes through it from the disk."""
    if not sizes.kv_slots:
        return model.kv_bytes(sizes.kv_blocks, sizes.kv_type)
    blocks = (sizes.kv_slots, *sizes.kv_blocks[1:])
    ring = model.profile.kv_ring_bytes(sizes.kv_type) if sizes.kv_passes else 0
    bounds = max(0, sizes.kv_blocks[0] - sizes.kv_slots) * model.profile.bounds_nbytes
    return model.kv_bytes(blocks, sizes.kv_type) + ring + bounds


def with_peak_margin(nbytes: int) -> int:
    """What a process may come to, of which so much is known."""
    return nbytes + constants.PEAK_MARGIN + int(constants.PEAK_MARGIN_SHARE * nbytes)


def _with_margin(shares: MemoryShares, resident: int) -> MemoryShares:
    owned = shares.total - shares.margin - shares.resident + resident
    margin = constants.MARGIN + int(constants.MARGIN_SHARE * owned)
    return replace(shares, resident=resident, margin=margin)


def room_for_weights(fixed: MemoryShares, budget: int) -> int:
    """Bytes that resident units may take within a budget, beside the fixed shares."""
    owned = fixed.total - fixed.margin
    most = int((budget - constants.MARGIN) / (1 + constants.MARGIN_SHARE))
    # One byte less, so that rounding never makes the margin's share one too many.
    return most - owned - 1


def resident_bytes(model: Outline, resident: Collection[str]) -> int:
    """Bytes of the matrices of resident units; one that two of them share counts once."""
    held: dict[object, int] = {}
    for unit in model.units:
        if unit.name in resident:
            held |= {m.source: m.packed_bytes for m in unit.matrices}
    return sum(held.values())


def added_bytes(unit: UnitProfile, held: Collection[object]) -> int:
    """Bytes that making a unit resident adds to matrices that are held already."""
    return sum(m.packed_bytes for m in unit.matrices if m.source not in held)


def sources(unit: UnitProfile) -> set[object]:
    """What the matrices of a unit are stored as."""
    found: set[object] = {m.source for m in unit.matrices}
    return found
