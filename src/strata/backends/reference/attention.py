"""Attention."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strata.backends.base import (
    KV_BLOCK,
    NO_BLOCK,
    Span,
    Step,
)
from strata.backends.reference.dense import softcap
from strata.backends.reference.run import Attrs, Run, operand
from strata.backends.reference.state import Floats, ReferenceState


def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    past: int,
    *,
    scale: float,
    window: int,
    cap: float,
    first: int = 0,
) -> Floats:
    """Causal attention of q [rows, heads, k_dim] over k [positions, kv_heads, k_dim] and v
    [positions, kv_heads, v_dim], which begin at position ``first``.

    Row i is position past + i; it sees keys at positions up to its own, and of these the last
    ``window`` if that is not 0.
    """
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    positions, keys = past + np.arange(rows)[:, None], first + np.arange(len(k))[None, :]
    seen = keys <= positions
    if window:
        seen &= positions - keys < window
    out = np.empty((rows, heads, v.shape[-1]), np.float32)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * np.float32(scale)
        if cap:
            scores = softcap(scores, cap)
        scores = np.where(seen, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights @ v[:, head // group] / weights.sum(axis=-1, keepdims=True)
    return out


def attention(
    attrs: Attrs,
    q: Floats,
    k: Floats | None,
    v: Floats | None,
    step: Step,
    state: ReferenceState,
) -> Floats:
    """Append k and v to each sequence's blocks, then let its rows attend over them."""
    number = state.group_of(attrs["layer"])
    all_keys, all_values = state.kv(attrs["layer"])
    kv_heads, v_dim = attrs["kv_heads"], attrs["v_dim"]
    if k is not None:
        for new, kept in ((k, all_keys), (v, all_values)):
            if new is not None:
                rounded = state.kv_type.stored(new.reshape(len(new), kv_heads, -1))
                for span in step.spans:
                    _append(rounded, kept, span, step, number)
    out = np.empty((len(q), attrs["heads"] * v_dim), np.float32)
    for span in step.spans:
        rows = slice(span.row, span.row + span.rows)
        end = span.past + span.rows
        first = state.groups[number].first_seen(span.past) // KV_BLOCK
        table = span.tables[number][first : -(-end // KV_BLOCK)]
        assert (table != NO_BLOCK).all()
        seen = slice(0, end - first * KV_BLOCK)
        out[rows] = attend(
            q[rows].reshape(span.rows, attrs["heads"], -1),
            all_keys[table].reshape(-1, kv_heads, all_keys.shape[-1])[seen],
            all_values[table].reshape(-1, kv_heads, v_dim)[seen],
            span.past,
            scale=attrs["scale"],
            window=attrs["window"],
            cap=attrs["softcap"],
            first=first * KV_BLOCK,
        ).reshape(span.rows, -1)
    return out


def _append(new: Floats, kept: Floats, span: Span, step: Step, group: int) -> None:
    """Write what a span's own rows and those of its ancestors keep into the span's blocks."""
    writer, end = span, span.past + span.rows
    while True:
        positions = np.arange(writer.past, end)
        blocks = span.tables[group][positions // KV_BLOCK]
        here = blocks != NO_BLOCK
        rows = writer.row + positions - writer.past
        kept[blocks[here], positions[here] % KV_BLOCK] = new[rows[here]]
        if writer.parent < 0:
            return
        writer, end = step.spans[writer.parent], writer.past


ATTENTION: Mapping[str, Run] = {
    "attention": lambda a, x, step, state: attention(
        a, x[0], operand(x, 1), operand(x, 2), step, state
    ),
}
