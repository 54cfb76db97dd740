"""Ops that keep a state of fixed size for a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature, table_of
from strata.program.program import ProgramError, Shape, Value

MOST_LOOKUPS = 64
"""Rows that an n-gram's table may be looked up for, for a token."""


def _short_conv(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, weight, *bias = values
    if len(weight.shape) != 2 or weight.shape[0] != x.width:
        raise ProgramError(
            f"short_conv: '{weight.name}' {weight.shape} has no taps for each of {x.shape}"
        )
    if weight.width < 2:
        raise ProgramError(
            f"short_conv: '{weight.name}' {weight.shape} has one tap and keeps nothing"
        )
    if attrs["dilation"] < 1:
        raise ProgramError(f"short_conv: taps {attrs['dilation']} rows apart")
    if bias and bias[0].shape != (x.width,):
        raise ProgramError(f"short_conv: bias '{bias[0].name}' {bias[0].shape} for {x.shape}")
    return x.shape


def _ngrams(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    table = table_of(values[0])
    multipliers, starts, sizes = (attrs[n] for n in ("multipliers", "starts", "sizes"))
    fits = (
        len(multipliers) >= 2
        and 1 <= len(starts) == len(sizes) <= MOST_LOOKUPS
        and len(starts) % (len(multipliers) - 1) == 0
        and all(0 <= m < 1 << 64 for m in multipliers)
        and all(at >= 0 and n >= 1 for at, n in zip(starts, sizes, strict=True))
        and all(at + n <= int(table.shape[0]) for at, n in zip(starts, sizes, strict=True))
    )
    if not fits:
        raise ProgramError(f"ngrams: '{table.name}' {table.shape} has no rows for {dict(attrs)}")
    return ("T", len(starts) * table.width)


def _previous(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return values[0].shape


RECURRENT: Mapping[str, Signature] = {
    # out[t, c] = bias[c] + sum over j of weight[c, j] * x[t - (taps - 1) + j, c]; x is 0 before the
    # sequence begins, and the layer's state is the last taps - 1 rows of x. With a dilation rows
    # are taken so far apart, and as many more are kept
    "short_conv": Signature(
        ("x", "weight", "bias?"),
        ("layer", "dilation"),
        _short_conv,
        lambda v, a, r, c: 2 * r * v[0].width * v[1].width,
        state="recurrent",
        kept=lambda v, a: (v[1].width - 1) * a["dilation"] * v[0].width,
        as_floats=("weight",),
    ),
    # rows of a table by hashes of a token and those before it, side by side: of n-grams of 2, 3, ..
    # len(multipliers) tokens, as many rows each. With t the token, then the one before it and so
    # on, mixed = t[0] multipliers[0] ^ t[1] multipliers[1] ^ .. in 64 bits, and row i of the
    # lookups is starts[i] + mixed % sizes[i]. Where a sequence begins, and at and before a token
    # `end` that is not t[0], all are `end`. The state is the last tokens, each with 1 added
    "ngrams": Signature(
        ("table",),
        ("layer", "multipliers", "starts", "sizes", "end"),
        _ngrams,
        lambda v, a, r, c: 2 * r * len(a["starts"]) * len(a["multipliers"]),
        ("tokens",),
        {"table": "rows"},
        state="recurrent",
        kept=lambda v, a: len(a["multipliers"]) - 1,
    ),
    # out[t] = x[t - 1], 0 before the sequence begins: RWKV's token shift
    "previous": Signature(
        ("x",),
        ("layer",),
        _previous,
        lambda v, a, r, c: 0,
        state="recurrent",
        kept=lambda v, a: v[0].width,
    ),
}
