"""Recurrences with a matrix of state a head, row after row, and what is put around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from strata.backends.base import NO_BLOCK, Step
from strata.backends.reference.run import Attrs, Run
from strata.backends.reference.state import Floats, ReferenceState

Advance = Callable[[int, Floats], tuple[Floats, Floats]]
"""(row, state before) -> (state after, what goes out)."""


def scan(out: Floats, layer: int, step: Step, state: ReferenceState, advance: Advance) -> Floats:
    """Take each sequence from its slot through its rows; fills and returns ``out``."""
    number = state.group_of(layer)
    (kept,) = state.recurrent(layer)
    for span in step.spans:
        source, target = span.tables[number]
        now = np.zeros_like(kept[0]) if source == NO_BLOCK else kept[source].copy()
        for row in range(span.row, span.row + span.rows):
            now, out[row] = advance(row, now)
        kept[target] = now.reshape(kept[target].shape)
    return out


def softplus(x: Floats) -> Floats:
    """log(1 + e^x)."""
    out: Floats = np.logaddexp(x, np.float32(0))
    return out


def ssm_scan(attrs: Attrs, x: list[Floats], step: Step, state: ReferenceState) -> Floats:
    """State [heads, states, head_dim]."""
    xs, dt, b, c, a, d = x
    rows, heads = dt.shape
    groups, states = attrs["groups"], attrs["states"]
    xs, dt = xs.reshape(rows, heads, -1), softplus(dt)
    b, c = (np.repeat(y.reshape(rows, groups, states), heads // groups, axis=1) for y in (b, c))
    decay = np.exp(dt[:, :, None] * a.reshape(heads, -1))

    def advance(t: int, now: Floats) -> tuple[Floats, Floats]:
        now = now.reshape(heads, states, -1)
        added = b[t, :, :, None] * (dt[t, :, None] * xs[t])[:, None, :]
        now = decay[t, :, :, None] * now + added
        y = np.einsum("hnp,hn->hp", now, c[t]) + d[:, None] * xs[t]
        return now, y.reshape(-1)

    return scan(np.zeros_like(x[0]), attrs["layer"], step, state, advance)


def gated_delta(attrs: Attrs, x: list[Floats], step: Step, state: ReferenceState) -> Floats:
    """State [heads, k_dim, v_dim]."""
    q, k, v, decay, beta = x
    rows, heads, key_heads = len(q), attrs["heads"], attrs["key_heads"]
    of = np.arange(heads) % key_heads if attrs["tiled"] else np.arange(heads) * key_heads // heads
    q, k = (y.reshape(rows, key_heads, -1)[:, of] for y in (q, k))
    values, decays = v.reshape(rows, heads, -1), decay.reshape(rows, heads, -1)

    def advance(t: int, now: Floats) -> tuple[Floats, Floats]:
        now = now.reshape(heads, k.shape[2], -1) * decays[t][:, :, None]
        seen = np.einsum("hk,hkv->hv", k[t], now)
        delta = beta[t][:, None] * (values[t] - seen)
        now = now + k[t][:, :, None] * delta[:, None, :]
        return now, np.einsum("hk,hkv->hv", q[t], now).reshape(-1)

    return scan(np.zeros_like(v), attrs["layer"], step, state, advance)


def linear_attention(attrs: Attrs, x: list[Floats], step: Step, state: ReferenceState) -> Floats:
    """State [heads, k_dim, v_dim]."""
    q, k, v, *given = (y.reshape(len(y), attrs["heads"], -1) for y in x)
    fixed = np.array(attrs["decays"], np.float32)[:, None]

    def advance(t: int, now: Floats) -> tuple[Floats, Floats]:
        decay = given[0][t] if given else fixed
        now = decay[:, :, None] * now.reshape(*k[t].shape, -1)
        now = now + k[t][:, :, None] * v[t][:, None, :]
        return now, np.einsum("hk,hkv->hv", q[t], now).reshape(-1)

    return scan(np.zeros_like(x[2]), attrs["layer"], step, state, advance)


def wkv6(attrs: Attrs, x: list[Floats], step: Step, state: ReferenceState) -> Floats:
    """State [heads, head_dim, head_dim], keys first."""
    r, k, v, w, u = (y.reshape(-1, attrs["heads"], x[0].shape[1] // attrs["heads"]) for y in x)
    decay = np.exp(-np.exp(w))

    def advance(t: int, now: Floats) -> tuple[Floats, Floats]:
        now = now.reshape(*k[t].shape, -1)
        kv = k[t][:, :, None] * v[t][:, None, :]
        y = np.einsum("hk,hkv->hv", r[t], now + u[0][:, :, None] * kv)
        return decay[t][:, :, None] * now + kv, y.reshape(-1)

    return scan(np.zeros_like(x[0]), attrs["layer"], step, state, advance)


def wkv7(attrs: Attrs, x: list[Floats], step: Step, state: ReferenceState) -> Floats:
    """State [heads, head_dim, head_dim], keys first."""
    r, w, k, v, a, b = (y.reshape(len(y), attrs["heads"], -1) for y in x)

    def advance(t: int, now: Floats) -> tuple[Floats, Floats]:
        now = now.reshape(*k[t].shape, -1)
        removed = np.einsum("hk,hkv->hv", a[t], now)
        now = (
            w[t][:, :, None] * now
            + b[t][:, :, None] * removed[:, None, :]
            + k[t][:, :, None] * v[t][:, None, :]
        )
        return now, np.einsum("hk,hkv->hv", r[t], now).reshape(-1)

    return scan(np.zeros_like(x[0]), attrs["layer"], step, state, advance)


def grouped_rms_norm(attrs: Attrs, x: Floats, weight: Floats) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight, by group."""
    groups = x.reshape(len(x), attrs["groups"], -1)
    mean = np.mean(groups * groups, axis=-1, keepdims=True)
    out: Floats = (groups / np.sqrt(mean + np.float32(attrs["eps"]))).reshape(x.shape)
    return out * weight.reshape(-1)


def l2_norm(attrs: Attrs, x: Floats) -> Floats:
    """x / sqrt(sum(x^2) + eps) * scale, by group."""
    groups = x.reshape(len(x), -1, attrs["group"])
    total = np.sum(groups * groups, axis=-1, keepdims=True)
    out: Floats = groups / np.sqrt(total + np.float32(attrs["eps"])) * np.float32(attrs["scale"])
    return out.reshape(x.shape)


def decay(x: Floats, a: Floats) -> Floats:
    """exp(a * softplus(x))."""
    each: Floats = np.exp(np.repeat(a, x.shape[1] // a.size) * softplus(x))
    return each


def group_sum(attrs: Attrs, x: Floats) -> Floats:
    """The sum of each group."""
    out: Floats = x.reshape(len(x), -1, attrs["group"]).sum(axis=-1)
    return out


def softmax(attrs: Attrs, x: Floats) -> Floats:
    """e^x over the sum of them, by group."""
    groups = x.reshape(len(x), -1, attrs["group"])
    powers = np.exp(groups - groups.max(axis=-1, keepdims=True))
    out: Floats = (powers / powers.sum(axis=-1, keepdims=True)).reshape(x.shape)
    return out


SCANS: Mapping[str, Run] = {
    "ssm_scan": ssm_scan,
    "gated_delta": gated_delta,
    "linear_attention": linear_attention,
    "wkv6": wkv6,
    "wkv7": wkv7,
    "grouped_rms_norm": lambda a, x, step, state: grouped_rms_norm(a, x[0], x[1]),
    "l2_norm": lambda a, x, step, state: l2_norm(a, x[0]),
    "group_sum": lambda a, x, step, state: group_sum(a, x[0]),
    "softmax": lambda a, x, step, state: softmax(a, x[0]),
    "decay": lambda a, x, step, state: decay(x[0], x[1]),
}
