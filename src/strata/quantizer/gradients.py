"""How a layer's outputs change with its weights: reverse mode over the Ops of dense layers.

Beside the reference backend's functions, whose values it takes, for distilling (`distilling.py`).
How much a loss depends on single weights (the mean of squared gradients, Fisher's information) and
which columns can be left out (`strata.quant.pruning.taylor`) follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError
from strata.program import Segment

Floats = NDArray[np.float32]
Attrs = Mapping[str, Any]


class NotDifferentiable(StrataError):
    """An Op that no gradient goes through here."""


def check_differentiable(segment: Segment) -> None:
    """NotDifferentiable where a Segment has other Ops than those of plain dense layers."""
    matrices = {w.name for w in segment.weights if len(w.shape) == 3}
    for op in segment.program.ops:
        odd = op.kind not in _BACKWARD
        if op.kind == "attention":
            a = op.attrs
            apart = ("softcap", "alibi", "sinks", "chunked", "beginning", "read", "chosen")
            odd = any(a[n] for n in apart)
            odd = odd or len(op.inputs) != 3 or not a["causal"]
        elif op.kind == "rms_norm":
            odd = bool(op.attrs["group"]) or len(op.inputs) != 2
        elif op.kind in ("matmul", "rope"):
            odd = len(op.inputs) != (2 if op.kind == "matmul" else 1) or op.inputs[-1] in matrices
        elif op.kind == "glu":
            odd = op.attrs["function"] not in ("silu", "gelu_tanh")
        if odd:
            raise NotDifferentiable(f"no gradient goes through {op.kind} of {segment.name}")


def gradients(
    segment: Segment,
    values: Mapping[str, Floats],
    positions: NDArray[np.int32],
    outer: Mapping[str, Floats],
) -> dict[str, Floats]:
    """The gradient of a loss in each value of a Segment: its weights, its inputs and what lies
    between.

    ``values`` are all of them for one text at ``positions`` 0, 1, ..., ``outer`` the gradients in
    the Program's outputs. Raises NotDifferentiable.
    """
    check_differentiable(segment)
    found: dict[str, Floats] = dict(outer)
    for op in reversed(segment.program.ops):
        given = found.get(op.output)
        if given is None:
            continue
        operands = [values[name] for name in op.inputs]
        parts = _BACKWARD[op.kind](op.attrs, operands, values[op.output], given, positions)
        for name, part in zip(op.inputs, parts, strict=True):
            found[name] = found[name] + part if name in found else part
    return found


Backward = Callable[[Attrs, list[Floats], Floats, Floats, NDArray[np.int32]], Sequence[Floats]]


def _rms_norm(a: Attrs, x: list[Floats], y: Floats, g: Floats, at: Any) -> list[Floats]:
    del y, at
    inputs, gain = x[0].reshape(-1, x[1].size), x[1].reshape(-1)
    given = g.reshape(inputs.shape)
    squares = (inputs * inputs).mean(axis=1, keepdims=True)
    by: Floats = 1 / np.sqrt(squares + np.float32(a["eps"]))
    normed = inputs * by
    inner = given * gain
    back = by * (inner - normed * (inner * normed).mean(axis=1, keepdims=True))
    return [back.reshape(x[0].shape), (given * normed).sum(axis=0).reshape(x[1].shape)]


def _matmul(a: Attrs, x: list[Floats], y: Floats, g: Floats, at: Any) -> list[Floats]:
    del a, y, at
    return [g @ x[1], g.T @ x[0]]


def _rope(
    a: Attrs, x: list[Floats], y: Floats, g: Floats, positions: NDArray[np.int32]
) -> list[Floats]:
    """Turning back."""
    from strata.backends.reference.dense import rope

    del y, x
    frequencies = [-f for f in a["inv_freq"]]
    kept = {n: a[n] for n in ("head_dim", "style", "mscale", "limit")}
    return [rope(g, positions, frequencies, None, **kept)]


def _attention(a: Attrs, x: list[Floats], y: Floats, g: Floats, at: Any) -> list[Floats]:
    del y, at
    heads, kv_heads = a["heads"], a["kv_heads"]
    rows, group = len(x[0]), heads // kv_heads
    q, k, v, given = (
        z.reshape(rows, n, -1).transpose(1, 0, 2)
        for z, n in zip((*x, g), (heads, kv_heads, kv_heads, heads), strict=True)
    )
    apart = np.arange(rows)[:, None] - np.arange(rows)
    seen = (apart >= 0) & ((apart < a["window"]) if a["window"] else True)
    scale = np.float32(a["scale"])
    back = [np.zeros_like(z) for z in (q, k, v)]
    for head in range(heads):
        mine = head // group
        scores = np.where(seen, q[head] @ k[mine].T * scale, np.float32(-np.inf))
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        back[2][mine] += p.T @ given[head]
        inner = given[head] @ v[mine].T
        inner = p * (inner - (inner * p).sum(axis=1, keepdims=True)) * scale
        back[0][head] = inner @ k[mine]
        back[1][mine] += inner.T @ q[head]
    return [z.transpose(1, 0, 2).reshape(old.shape) for z, old in zip(back, x, strict=True)]


def _glu(a: Attrs, x: list[Floats], y: Floats, g: Floats, at: Any) -> list[Floats]:
    del y, at
    gate, up = x
    value: Floats
    slope: Floats
    if a["function"] == "silu":
        s = (1 / (1 + np.exp(-np.clip(gate, -80, 80)))).astype(np.float32)
        value, slope = gate * s, s * (1 + gate * (1 - s))
    else:
        c = np.float32(np.sqrt(2 / np.pi))
        t = np.tanh(c * (gate + np.float32(0.044715) * gate**3))
        value = gate * (1 + t) / 2
        slope = (1 + t) / 2 + gate / 2 * (1 - t * t) * c * (1 + np.float32(0.134145) * gate**2)
    return [g * up * slope, g * value]


_BACKWARD: Mapping[str, Backward] = {
    "rms_norm": _rms_norm,
    "matmul": _matmul,
    "rope": _rope,
    "attention": _attention,
    "glu": _glu,
    "add": lambda a, x, y, g, at: [g, g],
    "scale": lambda a, x, y, g, at: [g * np.float32(a["factor"])],
}
