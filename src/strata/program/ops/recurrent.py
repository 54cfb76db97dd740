"""Ops that keep a state of fixed size for a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature
from strata.program.program import ProgramError, Shape, Value


def _short_conv(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, weight, *bias = values
    if len(weight.shape) != 2 or weight.shape[0] != x.width:
        raise ProgramError(
            f"short_conv: '{weight.name}' {weight.shape} has no taps for each of {x.shape}"
        )
    if weight.width < 2:
        raise ProgramError(
            f"short_conv: '{weight.name}' {weight.shape} has one tap and keeps nothing"
        )
    if bias and bias[0].shape != (x.width,):
        raise ProgramError(f"short_conv: bias '{bias[0].name}' {bias[0].shape} for {x.shape}")
    return x.shape


def _previous(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return values[0].shape


RECURRENT: Mapping[str, Signature] = {
    # out[t, c] = bias[c] + sum over j of weight[c, j] * x[t - (taps - 1) + j, c]; x is 0 before the
    # sequence begins, and the layer's state is the last taps - 1 rows of x
    "short_conv": Signature(
        ("x", "weight", "bias?"),
        ("layer",),
        _short_conv,
        lambda v, a, r, c: 2 * r * v[0].width * v[1].width,
        state="recurrent",
        kept=lambda v, a: (v[1].width - 1) * v[0].width,
        as_floats=("weight",),
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
