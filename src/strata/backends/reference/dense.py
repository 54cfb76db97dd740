"""Ops of single rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.reference.run import Run, operand
from strata.backends.reference.state import Floats


def embed(table: Floats, tokens: NDArray[np.int32], scale: float) -> Floats:
    """Rows of the table, scaled: [tokens, width]."""
    out: Floats = table[tokens] * np.float32(scale)
    return out


def rms_norm(x: Floats, weight: Floats | None, eps: float, group: int = 0) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over groups as wide as the weight, or of ``group``."""
    groups = x.reshape(*x.shape[:-1], -1, group if weight is None else weight.size)
    mean = np.mean(groups * groups, axis=-1, keepdims=True)
    out: Floats = groups / np.sqrt(mean + np.float32(eps))
    return (out if weight is None else out * weight).reshape(x.shape)


def layer_norm(
    x: Floats, weight: Floats | None, bias: Floats | None, eps: float, group: int = 0
) -> Floats:
    """(x - mean) / sqrt(variance + eps) * weight + bias over such groups."""
    groups = x.reshape(*x.shape[:-1], -1, group if weight is None else weight.size)
    centred = groups - np.mean(groups, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    out = centred / np.sqrt(variance + np.float32(eps))
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    normed: Floats = out.reshape(x.shape)
    return normed


def matmul(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """x @ weight.T + bias; with a weight [groups, n, k] each k columns by their own matrix."""
    if weight.ndim == 3:
        groups = x.reshape(len(x), len(weight), -1)
        return np.ascontiguousarray(
            np.stack([groups[:, g] @ w.T for g, w in enumerate(weight)], axis=1)
        ).reshape(len(x), -1)
    out: Floats = x @ weight.T
    return out if bias is None else out + bias


def rope(
    x: Floats,
    positions: NDArray[np.int32],
    inv_freq: Sequence[float],
    factors: Floats | None,
    *,
    head_dim: int,
    style: str,
    mscale: float,
    limit: int = 0,
) -> Floats:
    """Turn pairs of each head by position * inv_freq / factors; dimensions beyond stay. With a
    ``limit`` positions beyond it count as that one."""
    positions = np.minimum(positions, limit) if limit else positions
    frequency = np.array(inv_freq, np.float32)
    if factors is not None:
        frequency = frequency / factors
    n = len(frequency)
    angle = positions[:, None].astype(np.float32) * frequency
    cos = (np.cos(angle) * np.float32(mscale))[:, None, :]
    sin = (np.sin(angle) * np.float32(mscale))[:, None, :]
    heads = x.reshape(len(x), -1, head_dim)
    pairs = (
        (slice(0, n), slice(n, 2 * n))
        if style == "neox"
        else (
            slice(0, 2 * n, 2),
            slice(1, 2 * n, 2),
        )
    )
    first, second = heads[..., pairs[0]], heads[..., pairs[1]]
    out = heads.copy()
    out[..., pairs[0]] = first * cos - second * sin
    out[..., pairs[1]] = second * cos + first * sin
    turned: Floats = out.reshape(x.shape)
    return turned


def activate(x: Floats, function: str) -> Floats:
    """The activation functions by their names in ``strata.program.ops.ACTIVATIONS``."""
    out: Floats
    if function == "silu":
        # exp(-x) may overflow to infinity, which gives the right limit: 0.
        with np.errstate(over="ignore"):
            out = x / (1 + np.exp(-x))
    elif function == "gelu":
        out = np.float32(0.5) * x * (1 + _erf(x / np.float32(math.sqrt(2))))
    elif function == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        out = np.float32(0.5) * x * (1 + np.tanh(inner))
    elif function == "relu":
        out = np.maximum(x, 0)
    elif function == "sigmoid":
        out = _sigmoid(x)
    elif function == "tanh":
        out = np.tanh(x)
    elif function == "softplus":
        out = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    elif function == "gelu_quick":
        out = x * _sigmoid(x * np.float32(1.702))
    elif function == "exp":
        with np.errstate(over="ignore"):
            out = np.exp(x)
    elif function == "signed_sqrt":
        out = np.sign(x) * np.sqrt(np.maximum(np.abs(x), np.float32(1e-6)))
    else:
        out = np.square(np.maximum(x, 0))
    return out


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)."""
    out: Floats = np.tanh(x / np.float32(cap)) * np.float32(cap)
    return out


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        out: Floats = (1 / (1 + np.exp(-x))).astype(np.float32, copy=False)
    return out


def _erf(x: Floats) -> Floats:
    out: Floats = np.vectorize(math.erf, otypes=[np.float32])(x)
    return out


DENSE: Mapping[str, Run] = {
    "embed": lambda a, x, step, state: embed(x[0], step.tokens, a["scale"]),
    "add_positions": lambda a, x, step, state: x[0] + x[1][step.positions + a["offset"]],
    "rms_norm": lambda a, x, step, state: rms_norm(x[0], operand(x, 1), a["eps"], a["group"]),
    "layer_norm": lambda a, x, step, state: layer_norm(
        x[0], operand(x, 1), operand(x, 2), a["eps"], a["group"]
    ),
    "matmul": lambda a, x, step, state: matmul(x[0], x[1], operand(x, 2)),
    "rope": lambda a, x, step, state: rope(
        x[0],
        step.positions,
        a["inv_freq"],
        x[1] if len(x) > 1 else None,
        head_dim=a["head_dim"],
        style=a["style"],
        mscale=a["mscale"],
        limit=a["limit"],
    ),
    "glu": lambda a, x, step, state: activate(x[0], a["function"]) * x[1],
    "activation": lambda a, x, step, state: activate(x[0], a["function"]),
    "add": lambda a, x, step, state: x[0] + x[1],
    "scale": lambda a, x, step, state: x[0] * np.float32(a["factor"]),
    "softcap": lambda a, x, step, state: softcap(x[0], a["cap"]),
    "select": lambda a, x, step, state: x[0][step.logits_indices],
}
