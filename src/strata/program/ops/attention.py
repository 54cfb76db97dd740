"""Attention, by which rows read what is kept of their sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature, rows_of
from strata.program.program import ProgramError, Shape, Value


def _attention(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    q, *kept = values
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
    if len(kept) == 1 and v_dim > k_dim:
        raise ProgramError(f"attention: values of {v_dim} are no part of keys of {k_dim}")
    return (*rows_of(q), heads * v_dim)


def _attention_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    per_head = attrs["k_dim"] + (0 if len(values) == 2 else attrs["v_dim"])
    return int(attrs["kv_heads"] * per_head)


def _attention_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    window = attrs["window"]
    keys = min(context, window) if window else context
    return int(2 * rows * keys * attrs["heads"] * (attrs["k_dim"] + attrs["v_dim"]))


ATTENTION: Mapping[str, Signature] = {
    # append k, v to the layer's KV, then causal attention of each row over its own sequence;
    # scores = softcap(q.k * scale), keys older than `window` positions are not seen (0: all are).
    # Without v the value is the first v_dim elements of each key; without k and v nothing is
    # appended: `layer` is the one that keeps what is read, and has appended already
    "attention": Signature(
        ("q", "k?", "v?"),
        ("layer", "heads", "kv_heads", "k_dim", "v_dim", "scale", "window", "softcap"),
        _attention,
        _attention_flops,
        ("positions",),
        state="kv",
        kept=_attention_kept,
    ),
}
