"""Ops of single rows: tables, norms, products, positions, activations."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from strata.program.ops.signature import (
    Signature,
    per_element,
    rows_of,
    same,
    sizes,
    table_of,
    unary,
)
from strata.program.program import ProgramError, Shape, Value

ACTIVATIONS = (
    "silu",
    "gelu",
    "gelu_tanh",
    "relu",
    "relu2",
    "sigmoid",
    "tanh",
    "softplus",
    "gelu_quick",
    "exp",
    "signed_sqrt",
)


def _embed(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return ("T", table_of(values[0]).width)


def _add_positions(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, table = values
    if table_of(table).width != x.width:
        raise ProgramError(f"'{table.name}' {table.shape} cannot be added to '{x.name}' {x.shape}")
    return x.shape


def _norm(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, *parameters = values
    group = attrs["group"]
    if not parameters and (group < 1 or x.width % group):
        raise ProgramError(f"groups of {group} do not divide '{x.name}' {x.shape}")
    for p in parameters:
        if len(p.shape) != 1 or x.width % p.width or group not in (0, p.width):
            raise ProgramError(
                f"norm weight '{p.name}' {p.shape} does not divide '{x.name}' {x.shape}"
            )
    return x.shape


def _matmul(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    x, w, *bias = values
    groups, *matrix = sizes(w) if len(w.shape) == 3 else (1, *sizes(w))
    if len(matrix) != 2 or x.width != groups * w.width:
        raise ProgramError(f"'{x.name}' {x.shape} cannot be multiplied with '{w.name}' {w.shape}")
    if groups > 1 and bias:
        raise ProgramError(f"'{w.name}' {w.shape}: a product of several groups has no bias")
    if bias and bias[0].shape != (matrix[0],):
        raise ProgramError(
            f"bias '{bias[0].name}' {bias[0].shape} does not fit '{w.name}' {w.shape}"
        )
    return (*rows_of(x), groups * matrix[0])


def _activation(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if attrs["function"] not in ACTIVATIONS:
        raise ProgramError(
            f"unknown activation '{attrs['function']}'; known: {', '.join(ACTIVATIONS)}"
        )
    return same(values, attrs)


def _rope(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x = values[0]
    head, frequencies = attrs["head_dim"], attrs["inv_freq"]
    if len(values) > 1 and values[1].shape != (len(frequencies),):
        raise ProgramError(
            f"rope of {len(frequencies)} frequencies: '{values[1].name}' {values[1].shape}"
        )
    if x.width % head or 2 * len(frequencies) > head:
        raise ProgramError(
            f"rope of {2 * len(frequencies)} of {head} does not fit '{x.name}' {x.shape}"
        )
    if attrs["style"] not in ("neox", "interleaved"):
        raise ProgramError(f"unknown rope style '{attrs['style']}'")
    return x.shape


def _select(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    del attrs
    return ("R", values[0].width)


def _matmul_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    del attrs, context
    return 2 * rows * prod(sizes(values[1]))


DENSE: Mapping[str, Signature] = {
    # out[t] = table[tokens[t]] * scale
    "embed": Signature(
        ("table",),
        ("scale",),
        _embed,
        lambda v, a, r, c: r * v[0].width,
        ("tokens",),
        {"table": "rows"},
    ),
    # out[t] = x[t] + table[positions[t] + offset]
    "add_positions": Signature(
        ("x", "table"),
        ("offset",),
        _add_positions,
        per_element(1),
        ("positions",),
        {"table": "rows"},
    ),
    # groups of len(weight), or of `group` where there is none, along the last axis:
    # x / sqrt(mean(x^2) + eps) * weight
    "rms_norm": Signature(("x", "weight?"), ("eps", "group"), _norm, per_element(4)),
    # in such groups (x - mean) / sqrt(var + eps) * weight + bias
    "layer_norm": Signature(("x", "weight?", "bias?"), ("eps", "group"), _norm, per_element(6)),
    # out = x @ weight.T + bias; a weight of three axes has a matrix for each group of columns (for
    # each head), which gives as many groups of columns of the output
    "matmul": Signature(("x", "weight", "bias?"), (), _matmul, _matmul_flops),
    # rotate the first 2*len(inv_freq) dims of each head; angle = position * inv_freq / factors;
    # 'neox' pairs (i, i + n/2), 'interleaved' pairs (2i, 2i+1); cos and sin times mscale; with a
    # limit positions beyond it count as that one
    "rope": Signature(
        ("x", "factors?"),
        ("head_dim", "inv_freq", "style", "mscale", "limit"),
        _rope,
        per_element(3),
        ("positions",),
    ),
    # out = act(gate) * up
    "glu": Signature(("gate", "up"), ("function",), _activation, per_element(6)),
    # signed_sqrt: sign(x) sqrt(max(|x|, 1e-6))
    "activation": Signature(("x",), ("function",), _activation, per_element(5)),
    "add": Signature(("a", "b"), (), same, per_element(1)),
    # out = x * factor
    "scale": Signature(("x",), ("factor",), unary, per_element(1)),
    # out = cap * tanh(x / cap)
    "softcap": Signature(("x",), ("cap",), unary, per_element(6)),
    # out = x[logits_indices]: only rows whose logits are wanted go on
    "select": Signature(("x",), (), _select, lambda v, a, r, c: 0, ("logits_indices",)),
}
