"""Attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    KV_BLOCK,
    NO_BLOCK,
    Span,
    Step,
)
from strata.backends.reference.dense import softcap
from strata.backends.reference.run import Attrs, Run, operand
from strata.backends.reference.state import Floats, ReferenceState
from strata.program.ops.attention import alibi_slopes, main_operands


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
    causal: bool = True,
    slopes: Sequence[float] | None = None,
    sinks: Floats | None = None,
    chunked: bool = False,
    beginning: int = 0,
    q_beginning: Floats | None = None,
    read: int = 0,
    chosen: Floats | None = None,
) -> Floats:
    """Causal attention of q [rows, heads, k_dim] over k [positions, kv_heads, k_dim] and v
    [positions, kv_heads, v_dim], which begin at position ``first``.

    Row i is position past + i; it sees keys at positions up to its own, or all if not ``causal``,
    of these such as are less than ``window`` away if that is not 0 (``chunked``: those of its chunk
    of so many). ``slopes`` and ``sinks`` are those of the heads. The first ``beginning`` keys are
    seen beside a window; where that does not reach them any more, by ``q_beginning``, as if they
    lay right before it. With ``read`` a row sees blocks of so many positions, which
    ``chosen_blocks`` says; with ``chosen`` [rows, most] it sees those positions, and -1 is none.
    """
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    positions, keys = past + np.arange(rows)[:, None], first + np.arange(len(k))[None, :]
    seen = keys <= positions if causal else np.ones((rows, len(k)), bool)
    if window:
        near = np.abs(positions - keys) < window
        seen &= keys // window == positions // window if chunked else near
    far = (keys < beginning) & (positions >= window + beginning)
    seen |= (keys < beginning) & (keys <= positions)
    positions = np.where(far, window + beginning - 1, positions)
    if read:
        blocks = chosen_blocks(q * np.float32(scale), k, past, read // KV_BLOCK)
        seen &= blocks[:, np.arange(len(k)) // KV_BLOCK]
    if chosen is not None:
        named = np.zeros((rows, len(k) + 1), bool)
        # What is none falls behind the last key.
        named[np.arange(rows)[:, None], chosen.astype(np.int64)] = True
        seen &= named[:, :-1]
    out = np.empty((rows, heads, v.shape[-1]), np.float32)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * np.float32(scale)
        if q_beginning is not None:
            other = q_beginning[:, head] @ k[:, head // group].T * np.float32(scale)
            scores = np.where(far, other, scores)
        if cap:
            scores = softcap(scores, cap)
        if slopes is not None:
            distance = np.abs(positions - keys).astype(np.float32)
            scores = scores - np.float32(slopes[head]) * distance
        scores = np.where(seen, scores, np.float32(-np.inf))
        most = scores.max(axis=-1, keepdims=True)
        most = most if sinks is None else np.maximum(most, sinks[head])
        weights = np.exp(scores - most)
        total = weights.sum(axis=-1, keepdims=True)
        total = total if sinks is None else total + np.exp(sinks[head] - most)
        out[:, head] = weights @ v[:, head // group] / total
    return out


def chosen_blocks(q: Floats, k: Floats, past: int, read: int) -> NDArray[np.bool_]:
    """Which blocks rows see, [rows, blocks], of q [rows, heads, k_dim], which is scaled, and k
    [positions, kv_heads, k_dim] from position 0 on: the first, their own and the one before it, and
    those that may weigh most of the others, ``read`` in all.

    What a block may weigh is, of each head, e to the greatest score that the least and the greatest
    number of each dimension allow, against the greatest such score of these blocks, summed over the
    heads (after Tang et al., "Quest", arXiv 2406.10774). Bounds are kept as f16.
    """
    rows, heads, _ = q.shape
    whole, count = len(k) // KV_BLOCK, -(-len(k) // KV_BLOCK)
    keys = k[: whole * KV_BLOCK].reshape(whole, KV_BLOCK, *k.shape[1:])
    ends = [x.clip(-65504, 65504).astype(np.float16) for x in (keys.min(1), keys.max(1))]
    least, most = (np.repeat(x.astype(np.float32), heads // k.shape[1], axis=1) for x in ends)
    out = np.zeros((rows, count), bool)
    for row in range(rows):
        own = (past + row) // KV_BLOCK
        always = [0, max(0, own - 1), own]
        out[row, always] = True
        between = slice(1, max(1, own - 1))
        wanted = read - len(set(always))
        if between.stop - 1 <= wanted:
            out[row, between] = True
            continue
        bounds = np.maximum(q[row] * least[between], q[row] * most[between]).sum(-1)
        weights = np.exp(bounds - bounds.max(axis=0)).sum(-1)
        order = np.lexsort((-np.arange(len(weights)), -weights))
        out[row, 1 + order[:wanted]] = True
    return out


def attention(
    attrs: Attrs,
    operands: tuple[Floats, list[Floats | None]],
    step: Step,
    state: ReferenceState,
) -> Floats:
    """Append k and v to each sequence's blocks, then let its rows attend over them."""
    q, (k, v, sinks, q_beginning, chosen) = operands
    number = state.group_of(attrs["layer"])
    all_keys, all_values = state.kv(attrs["layer"])
    kv_heads, v_dim = attrs["kv_heads"], attrs["v_dim"]
    if k is not None:
        codecs = state.kv_type.of(attrs["layer"])
        for new, kept, codec in zip((k, v), (all_keys, all_values), codecs, strict=True):
            if new is not None:
                rounded = codec.stored(new.reshape(len(new), kv_heads, -1))
                for span in step.spans:
                    _append(rounded, kept, span, step, number)
    out = np.empty((len(q), attrs["heads"] * v_dim), np.float32)
    for span in step.spans:
        rows = slice(span.row, span.row + span.rows)
        end = span.past + span.rows
        group = state.groups[number]
        first = 0 if group.beginning else group.first_seen(span.past) // KV_BLOCK
        table = span.tables[number][first : -(-end // KV_BLOCK)]
        needed = np.ones(len(table), bool)
        needed[
            -(-group.beginning // KV_BLOCK) : group.first_seen(span.past) // KV_BLOCK - first
        ] = 0
        assert (table[needed] != NO_BLOCK).all()
        seen = slice(0, end - first * KV_BLOCK)
        keys, values = all_keys[table], all_values[table]
        # What is there of others is no number that a weight of zero would make harmless.
        keys[~needed], values[~needed] = 0, 0
        out[rows] = attend(
            q[rows].reshape(span.rows, attrs["heads"], -1),
            keys.reshape(-1, kv_heads, all_keys.shape[-1])[seen],
            values.reshape(-1, kv_heads, v_dim)[seen],
            span.past,
            scale=attrs["scale"],
            window=attrs["window"],
            cap=attrs["softcap"],
            first=first * KV_BLOCK,
            causal=attrs["causal"],
            slopes=alibi_slopes(attrs["heads"], attrs["alibi"]) if attrs["alibi"] else None,
            sinks=sinks,
            chunked=attrs["chunked"],
            beginning=attrs["beginning"],
            read=attrs["read"],
            chosen=None if chosen is None else chosen[rows],
            q_beginning=None
            if q_beginning is None
            else q_beginning[rows].reshape(span.rows, attrs["heads"], -1),
        ).reshape(span.rows, -1)
    return out


def top_keys(
    attrs: Attrs, q: Floats, k: Floats, w: Floats | None, step: Step, state: ReferenceState
) -> Floats:
    """Append k to each sequence's blocks; positions of the keys that weigh most for each row, or,
    without w, for each head of a row."""
    number = state.group_of(attrs["layer"])
    kept, _ = state.kv(attrs["layer"])
    codec, _ = state.kv_type.of(attrs["layer"])
    rounded = codec.stored(k[:, None, :])
    heads, most = q.shape[1] // k.shape[1], attrs["most"]
    out = np.full((len(q), 1 if w is not None else heads, most), -1, np.float32)
    for span in step.spans:
        _append(rounded, kept, span, step, number)
    for span in step.spans:
        blocks = span.tables[number][: -(-(span.past + span.rows) // KV_BLOCK)]
        keys = kept[blocks].reshape(-1, k.shape[1])
        for row in range(span.row, span.row + span.rows):
            seen = keys[: span.past + row - span.row + 1]
            scores = q[row].reshape(heads, -1) @ seen.T
            weights = scores if w is None else (w[row] @ np.maximum(scores, 0))[None]
            for own, weight in zip(out[row], weights, strict=True):
                found = heaviest(weight, most, attrs["block"], attrs["local"])
                own[: len(found)] = found
    return out.reshape(len(q), -1)


def heaviest(weights: Floats, most: int, block: int, local: int) -> NDArray[np.intp]:
    """Of keys that weigh so much, the last of which is a row's own, ``most`` at most, in whole
    blocks; their numbers, rising. See the Op."""
    count = -(-len(weights) // block)
    padded = np.full(count * block, -np.inf, np.float32)
    padded[: len(weights)] = weights
    worth = padded.reshape(count, block).max(axis=1)
    worth[max(count - local, 0) :] = np.inf
    order = np.lexsort((-np.arange(count), -worth))[: most // block]
    found: NDArray[np.intp] = (np.sort(order)[:, None] * block + np.arange(block)).ravel()
    return found[found < len(weights)]


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


def _operands(attrs: Attrs, x: list[Floats]) -> tuple[Floats, list[Floats | None]]:
    """q; and k, v, sinks, the query of the beginning, and the positions that are chosen."""
    most = main_operands(attrs, len(x))
    kept, sinks = x[:most], x[most] if attrs["sinks"] else None
    last = [x[-1] if attrs[name] else None for name in ("beginning", "chosen")]
    return kept[0], [operand(kept, 1), operand(kept, 2), sinks, *last]


ATTENTION: Mapping[str, Run] = {
    "attention": lambda a, x, step, state: attention(a, _operands(a, x), step, state),
    "top_keys": lambda a, x, step, state: top_keys(a, x[0], x[1], operand(x, 2), step, state),
}
