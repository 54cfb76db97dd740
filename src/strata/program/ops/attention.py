"""Attention, by which rows read what is kept of their sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature, rows_of
from strata.program.program import ProgramError, Shape, Value


def alibi_slopes(heads: int, most: float) -> list[float]:
    """What the score of a key loses for each position of its distance, by head (arXiv:2108.12409).

    ``most`` is the largest bias, 8 in the paper. Heads beyond a power of two take every other slope
    of twice as many.
    """
    whole = 1 << (heads.bit_length() - 1)
    first = [2 ** (-most * (i + 1) / whole) for i in range(whole)]
    rest = [2 ** (-most * (2 * i + 1) / (2 * whole)) for i in range(heads - whole)]
    return first + rest


def main_operands(attrs: Mapping[str, Any], count: int) -> int:
    """How many of so many operands of an attention are q, k and v, which come first."""
    return count - bool(attrs["sinks"]) - bool(attrs["beginning"]) - bool(attrs["chosen"])


def _attention(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    most = main_operands(attrs, len(values))
    if most < 1:
        raise ProgramError("attention: operands are missing")
    q, *kept = values[:most]
    heads, kv_heads, k_dim, v_dim = (attrs[n] for n in ("heads", "kv_heads", "k_dim", "v_dim"))
    widths = [kv_heads * k_dim, kv_heads * v_dim][: len(kept)]
    if (
        heads % kv_heads
        or q.width != heads * k_dim
        or [x.width for x in kept] != widths
        or any(rows_of(x) != rows_of(q) for x in kept)
    ):
        operands = ", ".join(f"{n} {x.shape}" for n, x in zip("qkv", values, strict=False))
        raise ProgramError(
            f"attention: {operands} are not {heads} and {kv_heads} heads with keys of {k_dim} "
            f"and values of {v_dim}"
        )
    if attrs["sinks"] and values[most].shape != (heads,):
        raise ProgramError(f"attention: sinks {values[most].shape} for {heads} heads")
    if attrs["beginning"] and values[-1].shape != q.shape:
        raise ProgramError(f"attention: queries {values[-1].shape} of the beginning for {q.shape}")
    if attrs["beginning"] and (attrs["chunked"] or not (attrs["window"] and attrs["causal"])):
        raise ProgramError("attention: a beginning is seen beside a window that looks back")
    if attrs["chunked"] and not (attrs["window"] and attrs["causal"]):
        raise ProgramError("attention: chunks are as long as a window, of positions that look back")
    if attrs["read"] and (attrs["window"] or attrs["alibi"] or not attrs["causal"]):
        raise ProgramError("attention: blocks are chosen of all that come before a row")
    if attrs["chosen"] and rows_of(values[-1]) != rows_of(q):
        raise ProgramError(f"attention: keys chosen {values[-1].shape} for {q.shape}")
    if attrs["chosen"] and (
        attrs["window"] or attrs["beginning"] or attrs["read"] or not attrs["causal"]
    ):
        raise ProgramError("attention: keys are chosen of all that come before a row")
    if len(kept) == 1 and v_dim > k_dim:
        raise ProgramError(f"attention: values of {v_dim} are no part of keys of {k_dim}")
    return (*rows_of(q), heads * v_dim)


def _top_keys(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    q, k, *w = values
    heads = w[0].width if w else q.width // k.width
    if q.width != heads * k.width or any(rows_of(x) != rows_of(q) for x in values):
        shapes = ", ".join(f"{n} {x.shape}" for n, x in zip("qkw", values, strict=False))
        raise ProgramError(f"top_keys: {shapes}: no heads of one key")
    if attrs["most"] < 1 or attrs["block"] < 1 or attrs["most"] % attrs["block"]:
        raise ProgramError(f"top_keys: {attrs['most']} keys in blocks of {attrs['block']}")
    return (*rows_of(q), choosing(len(values), heads) * attrs["most"])


def choosing(operands: int, heads: int) -> int:
    """How many choices a ``top_keys`` of so many operands makes for a row: one by all heads
    together where they have weights, else one a head."""
    return 1 if operands == 3 else heads


def _top_keys_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    return 2 * rows * context * values[0].width if context > attrs["most"] else 0


def _attention_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    # Two operands, q and k: values are part of keys. One, q: what another layer keeps is read.
    keeps_values = main_operands(attrs, len(values)) != 2
    per_head = attrs["k_dim"] + (attrs["v_dim"] if keeps_values else 0)
    return int(attrs["kv_heads"] * per_head)


def _attention_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    keys = seen_positions(attrs, context)
    return int(2 * rows * keys * attrs["heads"] * (attrs["k_dim"] + attrs["v_dim"]))


def seen_positions(attrs: Mapping[str, Any], context: int) -> int:
    """Of so many positions those that a row sees, its own among them."""
    if attrs["read"]:
        return int(min(context, attrs["read"]))
    return min(context, attrs["window"] + attrs["beginning"]) if attrs["window"] else context


ATTENTION: Mapping[str, Signature] = {
    # append k, v to the layer's KV, then causal attention of each row over its own sequence;
    # scores = softcap(q.k * scale), keys `window` positions away or more are not seen (0: all are).
    # With `chunked` positions are cut into chunks of `window`, and a row sees those of its own.
    # Without v the value is the first v_dim elements of each key; without k and v nothing is
    # appended: `layer` is the one that keeps what is read, and has appended already.
    # With `alibi`, the largest bias, scores lose alibi_slopes by distance. `sinks` says that the
    # last operand is a score for each head which weighs in the softmax and has no value. Not
    # `causal`: a row sees the keys up to the end of its step, which is that of the sequence.
    # Beside a window the first `beginning` positions are seen: those that it does not reach any
    # more by the query that is the last operand (arXiv:2309.17453). With `read` a row sees blocks
    # of so many positions: the first, its own and the one before it, and of the others those whose
    # keys may weigh most by the least and the greatest number of each dimension (arXiv:2406.10774);
    # of two that weigh the same the later. With `chosen` the last operand says which positions a
    # row sees, as `top_keys` gives them
    "attention": Signature(
        ("q", "k?", "v?", "sinks?", "q_beginning?", "chosen?"),
        (
            *("layer", "heads", "kv_heads", "k_dim", "v_dim", "scale", "window", "softcap"),
            *("alibi", "causal", "sinks", "chunked", "beginning", "read", "chosen"),
        ),
        _attention,
        _attention_flops,
        ("positions",),
        state="kv",
        kept=_attention_kept,
    ),
    # append k to the layer's keys; the positions of the `most` that weigh most for a row, of all up
    # to its own, rising, with -1 behind them where they are fewer: a key weighs the sum over the
    # heads of w * max(0, q.k); of two that weigh the same the later comes first (arXiv:2512.02556).
    # Without w every head chooses for itself, by q.k, and its positions lie behind those of the
    # ones before it. Keys are chosen in blocks of `block` positions, each of which weighs what the
    # heaviest of its keys up to the row's does, but the row's own and those right before it,
    # `local` in all, more than any other
    "top_keys": Signature(
        ("q", "k", "w?"),
        ("layer", "most", "block", "local"),
        _top_keys,
        _top_keys_flops,
        ("positions",),
        state="kv",
        kept=lambda values, attrs: values[1].width,
    ),
}
