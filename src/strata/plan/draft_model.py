"""Bytes of a model that guesses for another one, all of it resident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from strata.machine import constants

if TYPE_CHECKING:
    from strata.backends.profile import ModelProfile


def draft_model_bytes(
    profile: ModelProfile,
    row_width: int,
    *,
    threads: int,
    rows: int,
    parallel: int,
    context: int,
    kv_blocks: Sequence[int],
    kv_type: str,
) -> int:
    """Weights, so many blocks of KV of each group, what steps of ``rows`` tokens and ``parallel``
    rows of logits take, and the margin of all of it."""
    weights = {m.source: m.packed_bytes for unit in profile.units for m in unit.matrices}
    activations = profile.arena_bytes(rows, parallel) + threads * profile.scratch_bytes(
        streams=False
    )
    activations += profile.attention_bytes(context, parallel, threads, rows)
    # The backend's rows, and those that guesses are chosen from.
    logits = 3 * parallel * row_width * 4
    staging = profile.loading_bytes(constants.READERS, constants.LOADING_REQUEST)
    owned = profile.vector_bytes + sum(weights.values()) + profile.kv_bytes(kv_blocks, kv_type)
    owned += activations + logits + staging
    owned += (threads + constants.READERS) * constants.THREAD
    owned += len(profile.segments) * constants.SEGMENT
    return int(owned * (1 + constants.MARGIN_SHARE)) + constants.MARGIN
