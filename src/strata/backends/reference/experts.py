"""Mixtures of experts: every expert for every row, of which the unwanted are multiplied by 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from strata.backends.reference.dense import activate
from strata.backends.reference.run import Attrs, Run
from strata.backends.reference.state import Floats
from strata.program.ops.experts import OAI_ALPHA


def scores(logits: Floats, scoring: str) -> Floats:
    """Scores of all experts: [rows, experts]."""
    out: Floats
    if scoring == "softmax":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        out = powers / np.sum(powers, axis=-1, keepdims=True, dtype=np.float32)
    elif scoring == "sigmoid":
        out = np.reciprocal(1 + np.exp(-logits))
    elif scoring == "sqrt_softplus":
        out = np.sqrt(np.logaddexp(np.float32(0), logits), dtype=np.float32)
    else:
        out = logits
    return out


def choose(ranked: Floats, a: Attrs) -> NDArray[np.intp]:
    """The experts of each row, best first: [rows, top_k]."""
    if a["groups"] > 1:
        groups = ranked.reshape(len(ranked), a["groups"], -1)
        best = -np.sort(-groups, axis=-1)
        worth = best[..., 0] if a["group_score"] == "max" else best[..., :2].sum(axis=-1)
        kept = np.argsort(-worth, axis=-1, kind="stable")[:, : a["groups_kept"]]
        masked = np.full_like(groups, -np.inf)
        rows = np.arange(len(ranked))[:, None]
        masked[rows, kept] = groups[rows, kept]
        ranked = masked.reshape(ranked.shape)
    chosen: NDArray[np.intp] = np.argsort(-ranked, axis=-1, kind="stable")[:, : a["top_k"]]
    return chosen


def sparsemixer(logits: Floats, a: Attrs) -> tuple[NDArray[np.intp], Floats]:
    """The experts of each row, best first, and their weights: [rows, top_k] each."""
    left, rows = logits.copy(), np.arange(len(logits))
    chosen, weights = [], []
    for _ in range(a["top_k"]):
        e = np.argmax(left, axis=-1)
        top = left[rows, e][:, None]
        with np.errstate(invalid="ignore"):
            far = (top - left) / np.maximum(np.abs(left), top) > np.float32(a["jitter"])
        powers = np.where(far | np.isneginf(left), 0, np.exp(left - top))
        chosen.append(e)
        weights.append(np.float32(1) / powers.sum(axis=-1))
        left[rows, e] = -np.inf
    return np.stack(chosen, axis=-1), np.stack(weights, axis=-1).astype(np.float32)


def route(logits: Floats, selection: Floats | None, a: Attrs) -> Floats:
    """The weight of every expert for each row, 0 where it was not chosen: [rows, experts]."""
    if a["scoring"] == "sparsemixer":
        chosen, weight = sparsemixer(logits, a)
        return _spread(chosen, weight, logits.shape[-1])
    score = scores(logits, a["scoring"])
    ranked = logits if a["select"] == "logits" else score
    chosen = choose(ranked if selection is None else ranked + selection, a) // a["shared_by"]
    weight = np.take_along_axis(score, chosen, axis=-1)
    if a["softmax_chosen"]:
        weight = scores(weight, "softmax")
    if a["renormalise"]:
        total = weight.sum(axis=-1, keepdims=True)
        weight = weight / np.maximum(total, np.float32(a["least_sum"]))
    weight = weight * np.float32(a["scale"])
    return _spread(chosen, weight, logits.shape[-1] // a["shared_by"])


def _spread(chosen: NDArray[np.intp], weight: Floats, experts: int) -> Floats:
    out: Floats = np.zeros((len(chosen), experts), np.float32)
    np.add.at(out, (np.arange(len(chosen))[:, None], chosen), weight)
    return out


def gate_and_up(gate: Floats, up: Floats, a: Attrs) -> Floats:
    """act(gate) * up, with what ``clamp`` bounds."""
    limit = np.float32(a["limit"])
    out: Floats
    if a["clamp"] == "none":
        return activate(gate, a["function"]) * up
    if a["clamp"] == "situ":
        most = np.float32(a["up_limit"])
        up = most * np.tanh(up / most) if most else up
        out = limit * np.tanh(gate / limit) * activate(gate, "sigmoid") * up
        return out
    up = np.clip(up, -limit, limit)
    if a["clamp"] == "silu":
        out = np.minimum(activate(gate, "silu"), limit) * up
        return out
    gate = np.minimum(gate, limit)
    if a["clamp"] == "inputs":
        return activate(gate, "silu") * up
    alpha = np.float32(OAI_ALPHA)
    out = activate(alpha * gate, "silu") / alpha * (up + 1)
    return out


def experts(
    a: Attrs, operands: list[Floats], seen: Callable[[str, int, Floats], None] | None = None
) -> Floats:
    """See the Op. ``seen`` is told, of each expert that rows came to, which rows its matrices up,
    gate and down multiply."""
    x, logits, up, down, *rest = operands
    named = dict(zip(a["extras"], rest, strict=True))
    weights = route(logits, named.get("selection"), a)

    def product(x: Floats, matrix: Floats, name: str, e: int) -> Floats:
        out: Floats = x @ matrix[e].T
        if f"{name}_scale" in named:
            out = out * named[f"{name}_scale"][e]
        return out + named[f"{name}_bias"][e] if f"{name}_bias" in named else out

    total = np.zeros_like(x)
    for e in range(len(up)):
        weight = weights[:, e : e + 1]
        wanted = weight * x if a["weigh_input"] else x
        here = weight[:, 0] != 0
        if seen is not None and here.any():
            for name in ("up", "gate"):
                if name == "up" or name in named:
                    seen(name, e, wanted[here])
        inner = product(wanted, up, "up", e)
        if "gate" in named:
            inner = gate_and_up(product(wanted, named["gate"], "gate", e), inner, a)
        else:
            inner = activate(inner, a["function"])
        if seen is not None and here.any():
            seen("down", e, inner[here])
        out = product(inner, down, "down", e)
        total = total + (np.where(weight != 0, out, 0) if a["weigh_input"] else weight * out)
    return total


EXPERTS: Mapping[str, Run] = {"experts": lambda a, x, step, state: experts(a, x)}
