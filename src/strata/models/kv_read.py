"""Reading of what a model keeps of all positions only the blocks that may matter most to a row:
less KV from the disk, and less work, which is declared approximate. All of it stays kept.

Source: Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv
2406.10774. Blocks are chosen for a row and a layer, not for a head, since all heads of a block lie
together on the disk.
"""

from __future__ import annotations

from dataclasses import replace

from strata.backends.base import KV_BLOCK
from strata.errors import UsageError
from strata.models.kv_window import KVWindow, layers_that_keep_all, with_kv_window
from strata.program import Model, PagedKV, Segment

LEAST_READ = 4 * KV_BLOCK
"""Positions: the first block, a row's own, the one before it, and one that is chosen."""


def with_kv_read(model: Model, positions: int) -> Model:
    """The Model whose rows see so many positions, in whole blocks, of every layer that keeps all.
    UsageError for one that has no such layer, and for fewer than ``LEAST_READ``."""
    if positions < LEAST_READ:
        raise UsageError(
            f"rows read {LEAST_READ} positions at least (blocks of {KV_BLOCK}: the first, the last "
            f"two and one that is chosen), not {positions}"
        )
    if not model.causal or model.embeds:
        raise UsageError("reading a part of KV is for models that continue texts")
    full = layers_that_keep_all(model)
    if not full:
        raise UsageError(
            f"no layer of this '{model.architecture}' model keeps KV of all positions, of which a "
            "part could be read"
        )
    read = -(-positions // KV_BLOCK) * KV_BLOCK
    state = tuple(
        replace(s, read=read) if n in full and isinstance(s, PagedKV) else s
        for n, s in enumerate(model.state)
    )
    segments = tuple(_reading(segment, full, read) for segment in model.segments)
    return replace(model, segments=segments, state=state)


def _reading(segment: Segment, full: frozenset[int], read: int) -> Segment:
    ops = []
    for op in segment.program.ops:
        if op.kind == "attention" and op.attrs["layer"] in full:
            if op.attrs["window"] or op.attrs["alibi"]:
                raise UsageError(
                    "this model's scores depend on how far keys are, beyond what blocks can be "
                    "chosen by: leave --kv-read out"
                )
            op = replace(op, attrs={**op.attrs, "read": read})
        ops.append(op)
    return replace(segment, program=replace(segment.program, ops=tuple(ops)))


def with_part_seen(model: Model, window: KVWindow | None, read: int, context: int) -> Model:
    """The Model with either, or as it is: with a window ``context`` positions may be more than it
    was trained for. UsageError for both."""
    if window is not None and read:
        raise UsageError(
            "--kv-window keeps a part of KV and --kv-read reads a part of it: give one of the two"
        )
    if window is not None:
        return with_kv_window(model, window, context)
    return with_kv_read(model, read) if read else model
