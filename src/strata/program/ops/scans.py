"""Ops that go along the sequence with a matrix of state a head, and what is put around them.

The recurrences are the definition: a step of several tokens is as many steps of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from strata.program.ops.signature import Signature, per_element, rows_of
from strata.program.program import ProgramError, Shape, Value

MOST_KEYS = 1024
"""Rows that the state of a head may have."""


def _wrong(kind: str, values: list[Value], attrs: Mapping[str, Any]) -> ProgramError:
    shapes = ", ".join(f"'{v.name}' {v.shape}" for v in values)
    return ProgramError(f"{kind}: {shapes} do not fit {dict(attrs)}")


def _checked(kind: str, values: list[Value], attrs: Mapping[str, Any], widths: list[int]) -> Shape:
    """Rows of the first operand, if activations have these widths."""
    found = [v.width for v in values[: len(widths)]]
    alike = all(rows_of(v) == rows_of(values[0]) for v in values[: len(widths)])
    if found != widths or not alike:
        raise _wrong(kind, values, attrs)
    return rows_of(values[0])


def _ssm(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, dt, _, _, a, d = values
    groups, states = attrs["groups"], attrs["states"]
    heads = dt.width
    kept = groups * states
    rows = _checked("ssm_scan", values, attrs, [x.width, heads, kept, kept])
    by_channel = a.shape == (x.width, states) and heads == x.width and groups == 1
    by_head = a.shape == (heads,) and x.width % heads == 0 and heads % max(groups, 1) == 0
    if not (by_channel or by_head) or d.shape != (heads,) or not 1 <= states <= MOST_KEYS:
        raise _wrong("ssm_scan", values, attrs)
    return (*rows, x.width)


def _delta(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    q, k, v, decay, _ = values
    heads, key_heads = attrs["heads"], attrs["key_heads"]
    rows = _checked("gated_delta", values, attrs, [q.width, q.width, v.width, decay.width, heads])
    k_dim = k.width // max(key_heads, 1)
    if (
        min(heads, key_heads, k_dim) < 1
        or heads % key_heads
        or k.width % key_heads
        or v.width % heads
        or decay.width not in (heads, heads * k_dim)
        or k_dim > MOST_KEYS
    ):
        raise _wrong("gated_delta", values, attrs)
    return (*rows, v.width)


def _linear(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    q, k, v, *decay = values
    heads, decays = attrs["heads"], attrs["decays"]
    widths = [q.width, q.width, v.width, *(q.width for _ in decay)]
    rows = _checked("linear_attention", values, attrs, widths)
    if (
        heads < 1
        or q.width % heads
        or v.width % heads
        or k.width // heads > MOST_KEYS
        or len(decays) != (0 if decay else heads)
    ):
        raise _wrong("linear_attention", values, attrs)
    return (*rows, v.width)


def _wkv6(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    width, heads = values[0].width, attrs["heads"]
    rows = _checked("wkv6", values, attrs, [width] * 4)
    u = prod(n for n in values[4].shape if isinstance(n, int))
    if u != width or width % heads or width // heads > MOST_KEYS:
        raise _wrong("wkv6", values, attrs)
    return (*rows, width)


def _wkv7(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    width, heads = values[0].width, attrs["heads"]
    rows = _checked("wkv7", values, attrs, [width] * 6)
    if width % heads or width // heads > MOST_KEYS:
        raise _wrong("wkv7", values, attrs)
    return (*rows, width)


def _ssm_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    return int(values[0].width * attrs["states"])


def _delta_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    return int(values[1].width // attrs["key_heads"] * values[2].width)


def _linear_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    return int(values[1].width // attrs["heads"] * values[2].width)


def _wkv_kept(values: list[Value], attrs: Mapping[str, Any]) -> int:
    return int(values[0].width * values[0].width // attrs["heads"])


def _grouped(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, weight = values
    elements = 1
    for n in weight.shape:
        elements *= n if isinstance(n, int) else 0
    if elements != x.width or attrs["groups"] < 1 or x.width % attrs["groups"]:
        raise _wrong("grouped_rms_norm", values, attrs)
    return x.shape


def _l2(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if attrs["group"] < 1 or values[0].width % attrs["group"]:
        raise _wrong("l2_norm", values, attrs)
    return values[0].shape


def _decay(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, a = values
    if len(a.shape) != 1 or x.width % a.width:
        raise _wrong("decay", values, attrs)
    return x.shape


def _group_sum(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    (x,) = values
    if attrs["group"] < 1 or x.width % attrs["group"]:
        raise _wrong("group_sum", values, attrs)
    return (*rows_of(x), x.width // attrs["group"])


def _softmax(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if attrs["group"] < 1 or values[0].width % attrs["group"]:
        raise _wrong("softmax", values, attrs)
    return values[0].shape


SCANS: Mapping[str, Signature] = {
    # Mamba-1 and -2 (arXiv:2312.00752, 2405.21060). x is heads of head_dim = x.width / dt.width
    # channels; b and c are `groups` of `states`, each for as many heads. dt = softplus(dt);
    # state[h, p, n] = exp(dt a) state[h, p, n] + dt x[h, p] b[g, n];
    # out[h, p] = sum over n of state[h, p, n] c[g, n] + d[h] x[h, p].
    # a is [heads], or [heads, states] where every channel is a head (Mamba-1)
    "ssm_scan": Signature(
        ("x", "dt", "b", "c", "a", "d"),
        ("layer", "groups", "states"),
        _ssm,
        lambda v, a, r, c: 6 * r * _ssm_kept(v, a),
        state="recurrent",
        kept=_ssm_kept,
        as_floats=("a",),
    ),
    # Gated delta rule (arXiv:2412.06464); a decay for each key dimension: KDA (arXiv:2510.26692).
    # With S [k_dim, v_dim] of a head, S = diag(decay) S; S += k (beta (v - k S)); out = q S.
    # Head h has the keys of key head h * key_heads // heads, or where they are `tiled` of
    # h % key_heads
    "gated_delta": Signature(
        ("q", "k", "v", "decay", "beta"),
        ("layer", "heads", "key_heads", "tiled"),
        _delta,
        lambda v, a, r, c: 8 * r * _delta_kept(v, a),
        state="recurrent",
        kept=_delta_kept,
    ),
    # Linear attention with a decay of each key dimension (gated linear attention, arXiv:2312.06635)
    # or, as numbers that never change, of each head (lightning attention, arXiv:2405.17381).
    # With S [k_dim, v_dim] of a head, S = diag(decay) S + k v; out = q S
    "linear_attention": Signature(
        ("q", "k", "v", "decay?"),
        ("layer", "heads", "decays"),
        _linear,
        lambda v, a, r, c: 5 * r * _linear_kept(v, a),
        state="recurrent",
        kept=_linear_kept,
    ),
    # RWKV-6 (arXiv:2404.05892): out = r (S + diag(u) k v); S = diag(exp(-exp(w))) S + k v
    "wkv6": Signature(
        ("r", "k", "v", "w", "u"),
        ("layer", "heads"),
        _wkv6,
        lambda v, a, r, c: 7 * r * _wkv_kept(v, a),
        state="recurrent",
        kept=_wkv_kept,
        as_floats=("u",),
    ),
    # RWKV-7 (arXiv:2503.14456): S = diag(w) S + b (a S) + k v; out = r S
    "wkv7": Signature(
        ("r", "w", "k", "v", "a", "b"),
        ("layer", "heads"),
        _wkv7,
        lambda v, a, r, c: 9 * r * _wkv_kept(v, a),
        state="recurrent",
        kept=_wkv_kept,
    ),
    # rms_norm of each of `groups`, which have weights of their own
    "grouped_rms_norm": Signature(
        ("x", "weight"), ("groups", "eps"), _grouped, per_element(4), as_floats=("weight",)
    ),
    # each `group`: x / sqrt(sum(x^2) + eps) * scale
    "l2_norm": Signature(("x",), ("group", "eps", "scale"), _l2, per_element(4)),
    # the sum of each `group` of columns
    "group_sum": Signature(("x",), ("group",), _group_sum, per_element(1)),
    # e^x over the sum of e^x, over each `group`
    "softmax": Signature(("x",), ("group",), _softmax, per_element(8)),
    # exp(a * softplus(x)); each number of a is for as many columns
    "decay": Signature(("x", "a"), (), _decay, per_element(8)),
}
