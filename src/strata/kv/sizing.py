"""How many blocks the pool of each group has: enough for all, or what fits."""

from __future__ import annotations

from collections.abc import Sequence

from strata.errors import UsageError
from strata.kv.manager import window_blocks
from strata.kv.sequence import blocks_for
from strata.program import StateGroup
from strata.sizes import format_size

SNAPSHOT_ROWS = 512
"""Positions from one kept state of recurrent layers to the next, while a prompt is computed."""


def pool_blocks(
    groups: Sequence[StateGroup],
    block_nbytes: Sequence[int],
    *,
    context: int,
    parallel: int,
    step_rows: int,
    nbytes: int | None = None,
) -> tuple[int, ...] | None:
    """Blocks of each group for ``parallel`` sequences of ``context`` positions, in steps of up to
    ``step_rows`` rows; ``block_nbytes`` is what one takes. Within ``nbytes`` as many as fit beside
    what a single sequence needs, in the same proportion; None if not even that fits."""
    least = least_blocks(groups, context=context, step_rows=step_rows)
    most = [_most(group, context, parallel, step_rows) for group in groups]
    if nbytes is None:
        return tuple(most)
    needed = sum(n * size for n, size in zip(least, block_nbytes, strict=True))
    wanted = sum(n * size for n, size in zip(most, block_nbytes, strict=True))
    if nbytes < needed:
        return None
    if nbytes >= wanted:
        return tuple(most)
    spare, whole = nbytes - needed, wanted - needed
    return tuple(low + (high - low) * spare // whole for low, high in zip(least, most, strict=True))


def least_blocks(groups: Sequence[StateGroup], *, context: int, step_rows: int) -> tuple[int, ...]:
    """Blocks of each group without which not even one sequence of ``context`` positions runs, in
    steps of up to ``step_rows`` rows."""
    return tuple(_least(group, context, step_rows) for group in groups)


def no_room(
    groups: Sequence[StateGroup],
    block_nbytes: Sequence[int],
    *,
    context: int,
    step_rows: int,
    nbytes: int,
    kv_type: str,
) -> UsageError:
    """What to say where ``nbytes`` hold no sequence of ``context`` positions."""
    least = least_blocks(groups, context=context, step_rows=step_rows)
    needed = sum(count * size for count, size in zip(least, block_nbytes, strict=True))
    return UsageError(
        f"{format_size(nbytes)} of KV do not hold a context of {context} positions as {kv_type}, "
        f"which takes {format_size(needed)}: give more, or ask for a smaller context"
    )


def _least(group: StateGroup, context: int, step_rows: int) -> int:
    if group.recurrent:
        return 2
    every = blocks_for(context)
    return min(every, window_blocks(group, step_rows)) if group.window else every


def _most(group: StateGroup, context: int, parallel: int, step_rows: int) -> int:
    each = _least(group, context, step_rows)
    if group.recurrent:
        # One more is for the end of the last whole block, from where a conversation goes on.
        each += -(-context // SNAPSHOT_ROWS) + 1
    return parallel * each
