"""Bytes of every owner, from a model's sizes and what was chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from strata.plan import constants
from strata.plan.outline import Outline, SegmentOutline
from strata.plan.plan import MemoryShares


@dataclass(frozen=True)
class Sizes:
    """What is chosen before Segments find their place: threads, steps and streaming.

    ``ring_bytes``, ``request_bytes`` and ``io_threads`` are those of a run that streams; they are
    0 for one in which everything is resident.
    """

    threads: int
    max_tokens: int
    logit_rows: int
    kv_blocks: int
    context: int
    parallel: int
    kv_type: str = "f16"
    ring_bytes: int = 0
    request_bytes: int = 0
    io_threads: int = 0


def peak_while_opening(model: Outline) -> int:
    """The peak before any weight is loaded: while the tokenizer is built."""
    return (
        constants.INTERPRETER
        + constants.TOKENIZER
        + model.tokens * constants.TOKENIZER_BUILDING_TOKEN
        + model.merges * constants.TOKENIZER_BUILDING_MERGE
    )


def memory_shares(model: Outline, sizes: Sizes, resident: Collection[str]) -> MemoryShares:
    """Who owns how many bytes at the peak."""
    fixed = fixed_shares(model, sizes)
    weights = resident_bytes(model, resident)
    return _with_margin(fixed, fixed.resident + weights)


def fixed_shares(model: Outline, sizes: Sizes) -> MemoryShares:
    """The shares when no Segment is resident: only vectors are."""
    threads = sizes.threads + sizes.io_threads
    arena = model.arena_bytes(sizes.max_tokens, sizes.logit_rows)
    scratch = sizes.threads * model.scratch_bytes
    attention = model.attention_bytes(sizes.context, sizes.parallel, sizes.threads)
    # A choice of a token looks at one row; a step's tables and ids are small beside it.
    sampling = model.vocabulary * constants.SAMPLING_LOGIT
    base = MemoryShares(
        interpreter=constants.INTERPRETER
        + threads * constants.THREAD
        + len(model.segments) * constants.SEGMENT,
        tokenizer=constants.TOKENIZER
        + model.tokens * constants.TOKENIZER_TOKEN
        + model.merges * constants.TOKENIZER_MERGE,
        resident=model.vector_bytes,
        ring=sizes.ring_bytes,
        staging=sizes.io_threads * staging_bytes(model, sizes.request_bytes),
        kv=model.kv_bytes(sizes.kv_blocks, sizes.kv_type),
        activations=arena + scratch + attention,
        logits=sizes.logit_rows * model.vocabulary * 4 + sampling,
        margin=0,
    )
    return _with_margin(base, model.vector_bytes)


def _with_margin(shares: MemoryShares, resident: int) -> MemoryShares:
    owned = shares.total - shares.margin - shares.resident + resident
    margin = constants.MARGIN + int(constants.MARGIN_SHARE * owned)
    return MemoryShares(
        interpreter=shares.interpreter,
        tokenizer=shares.tokenizer,
        resident=resident,
        ring=shares.ring,
        staging=shares.staging,
        kv=shares.kv,
        activations=shares.activations,
        logits=shares.logits,
        margin=margin,
    )


def room_for_weights(fixed: MemoryShares, budget: int) -> int:
    """Bytes that resident Segments may take within a budget, beside the fixed shares."""
    owned = fixed.total - fixed.margin
    most = int((budget - constants.MARGIN) / (1 + constants.MARGIN_SHARE))
    # One byte less, so that rounding never makes the margin's share one too many.
    return most - owned - 1


def staging_bytes(model: Outline, request_bytes: int) -> int:
    """Bytes that one I/O thread needs for a request: at least a panel of any matrix."""
    read = max(request_bytes, model.largest_panel)
    # Weights that are put together or turned on the way need their bytes twice.
    return (2 if model.copies else 1) * read + constants.READ_SLACK


def resident_bytes(model: Outline, resident: Collection[str]) -> int:
    """Bytes of the matrices of resident Segments; one that two of them share counts once."""
    held: dict[object, int] = {}
    for s in model.segments:
        if s.name in resident:
            held |= {m.source: m.packed_bytes for m in s.matrices}
    return sum(held.values())


def added_bytes(segment: SegmentOutline, held: Collection[object]) -> int:
    """Bytes that making a Segment resident adds to matrices that are held already."""
    return sum(m.packed_bytes for m in segment.matrices if m.source not in held)


def sources(segment: SegmentOutline) -> set[object]:
    """What the matrices of a Segment are stored as."""
    found: set[object] = {m.source for m in segment.matrices}
    return found
