"""Ops on the elements of rows: products with gates and scales, biases, clamps, temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from strata.program.ops.signature import Signature, per_element, rows_of, unary
from strata.program.program import ProgramError, Shape, Value


def _mul(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    a, b = values
    if (b.role == "weight") != attrs["weight"] or attrs["inverse"] > attrs["weight"]:
        raise ProgramError(f"mul: '{b.name}' is a weight or it is none")
    if attrs["weight"]:
        fits = all(isinstance(n, int) for n in b.shape) and a.width % _elements(b) == 0
    else:
        fits = rows_of(a) == rows_of(b) and a.width % b.width == 0
    if not fits:
        raise ProgramError(f"mul: '{b.name}' {b.shape} does not divide '{a.name}' {a.shape}")
    return a.shape


def _elements(weight: Value) -> int:
    return prod(n for n in weight.shape if isinstance(n, int))


def _shift(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, bias = values
    if _elements(bias) != x.width:
        raise ProgramError(f"shift: '{bias.name}' {bias.shape} does not fit '{x.name}' {x.shape}")
    return x.shape


def _clamp(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if not attrs["low"] <= attrs["high"]:
        raise ProgramError(f"clamp to {attrs['low']} .. {attrs['high']}: nothing is between")
    return unary(values, attrs)


def _position_scale(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if not attrs["floor"] > 0 or values[0].shape[0] != "T":
        raise ProgramError(f"position_scale of '{values[0].name}' by a floor of {attrs['floor']}")
    return unary(values, attrs)


ELEMENTWISE: Mapping[str, Signature] = {
    # out[.., c] = a[.., c] * b[.., c / (W / H)]: b of H columns, or a weight of H numbers, whatever
    # its axes, where a has W. H = W is the plain product, 1 a scale, the number of heads a gate.
    # `weight` says which of the two b is, `inverse` that a weight divides
    "mul": Signature(("a", "b"), ("weight", "inverse"), _mul, per_element(1), as_floats=("b",)),
    # out = x + bias, a weight of as many numbers, whatever its axes
    "shift": Signature(("x", "bias"), (), _shift, per_element(1), as_floats=("bias",)),
    # out = min(max(x, low), high)
    "clamp": Signature(("x",), ("low", "high"), _clamp, per_element(2)),
    # xIELU (arXiv:2411.13010): x > 0: positive x^2 + beta x;
    # else negative (e^min(x, eps) - 1 - x) + beta x
    "xielu": Signature(("x",), ("negative", "positive", "beta", "eps"), unary, per_element(8)),
    # out = x * (1 + scale * log(1 + floor((position + offset) / floor)))
    "position_scale": Signature(
        ("x",), ("floor", "scale", "offset"), _position_scale, per_element(1), ("positions",)
    ),
}
