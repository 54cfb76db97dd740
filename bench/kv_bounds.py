"""What bounds of keys prove about blocks of KV, and how well they choose, on a real model.

    python bench/kv_bounds.py --model smollm2 --text FILE --out R.json [--rows 4096,8192]

The text goes through with exact attention; of some of the last rows every layer's queries and keys
are looked at. ``skipped`` is the share of blocks whose weight is surely below epsilon, all of them
together, by bounds of parts of ``part`` positions (``minmax``: the least and the greatest number of
each dimension; ``radius``: the mean key and how far others are from it), even if the sum of all
weights were known; by the true weights (``truth``) it is what no bound can go beyond. It is told
of blocks that one head, or all heads of a layer, can leave out. ``kept_weight`` is the share of
attention that blocks hold when so many are chosen, for all heads of a layer together, by the
greatest scores of their parts, by the scores of mean keys, or by the true weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kv_lab import Floats, Lab
from machine import describe
from strata.backends.base import KV_BLOCK, Span, Step
from strata.hub.references import resolve

EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1)
PARTS = (16, 64)
CHOSEN = (8, 16, 32)
AT_ONCE = 256


class Looking:
    """Exact attention, by some rows at a time; looks at ``looked`` of them."""

    def __init__(self, looked: NDArray[np.int64]) -> None:
        self.looked = looked
        self.found: dict[str, list[float]] = {}

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        group, rows = q.shape[1] // k.shape[1], len(q)
        keys, values = k.transpose(1, 2, 0), v.transpose(1, 0, 2)
        out = np.empty((rows, q.shape[1], v.shape[-1]), np.float32)
        for first in range(0, rows, AT_ONCE):
            end = min(first + AT_ONCE, rows)
            at = np.arange(first, end)
            for head in range(q.shape[1]):
                s = q[first:end, head] @ keys[head // group, :, :end] * np.float32(scale)
                s[at[:, None] < np.arange(end)[None]] = -np.inf
                w = np.exp(s - s.max(axis=-1, keepdims=True))
                out[first:end, head] = w @ values[head // group, :end]
                out[first:end, head] /= w.sum(axis=-1, keepdims=True)
        for row in self.looked:
            self._look(q[row] * np.float32(scale), k[: row + 1], group)
        return out

    def _look(self, q: Floats, k: Floats, group: int) -> None:
        """One row of one layer: q [heads, dim], k [positions, kv_heads, dim]."""
        count = len(k) // KV_BLOCK
        sealed = np.repeat(k[: count * KV_BLOCK], group, axis=1).transpose(1, 0, 2)
        s = (np.repeat(k, group, axis=1).transpose(1, 0, 2) @ q[:, :, None])[..., 0]
        top = s.max(axis=1, keepdims=True)
        weights = np.exp(s - top)
        total = weights.sum(axis=1, keepdims=True)
        true = weights[:, : count * KV_BLOCK].reshape(len(q), count, -1).sum(-1) / total
        bounds, ways = {"truth": true}, dict[str, Floats]()
        for part in PARTS:
            parts = sealed.reshape(len(q), -1, part, q.shape[-1])
            up, down = np.maximum(q, 0)[:, None], np.minimum(q, 0)[:, None]
            minmax = (up * parts.max(2) + down * parts.min(2)).sum(-1)
            mean = parts.mean(2)
            radius = np.linalg.norm(parts - mean[:, :, None], axis=-1).max(2)
            ball = (mean * q[:, None]).sum(-1) + radius * np.linalg.norm(q, axis=-1)[:, None]
            for name, most in (("minmax", minmax), ("radius", ball)):
                # No sum of a bound that is beyond all weights is of use.
                each = part * np.exp(np.minimum(most - top, 30)) / total
                bounds[f"{name} {part}"] = each.reshape(len(q), count, -1).sum(-1)
            ways[f"minmax {part}"] = minmax
            ways[f"mean {part}"] = (mean * q[:, None]).sum(-1)
        self._choose(true, ways)
        for name, each in bounds.items():
            for epsilon in EPSILONS:
                out = _left_out(each, epsilon)
                self._add(f"skipped, {name}, epsilon {epsilon:g}, a head", out.mean())
                self._add(f"skipped, {name}, epsilon {epsilon:g}, a layer", out.all(0).mean())

    def _choose(self, true: Floats, by: dict[str, Floats]) -> None:
        ways = {"truth": true.sum(0)}
        for name, score in by.items():
            weight = np.exp(score - score.max(1, keepdims=True)).sum(0)
            ways[name] = weight.reshape(true.shape[1], -1).sum(-1)
        for name, score in ways.items():
            score[[0, -1]] = np.inf
            for chosen in CHOSEN:
                best = np.argsort(-score)[:chosen]
                rest = np.delete(true, best, axis=1).sum(1)
                self._add(f"kept_weight, {name}, {chosen} blocks", float((1 - rest).mean()))

    def _add(self, name: str, value: float) -> None:
        self.found.setdefault(name, []).append(float(value))


def _left_out(each: Floats, epsilon: float) -> NDArray[np.bool_]:
    """Blocks from the least on whose sum stays below epsilon, of each head."""
    order = np.argsort(each, axis=1)
    sums = np.cumsum(np.take_along_axis(each, order, axis=1), axis=1)
    out = np.empty(each.shape, bool)
    np.put_along_axis(out, order, sums < epsilon, axis=1)
    return out


def look(model: Path, text: str, rows: int, looked: int) -> dict[str, Any]:
    lab = Lab(model, text, rows)
    rows = len(lab.tokens)
    watching = Looking(np.linspace(rows * 7 // 8, rows - 1, looked).astype(np.int64))
    table = np.arange(-(-rows // KV_BLOCK), dtype=np.int32)
    span = Span(0, rows, 0, (table,) * len(lab.model.groups))
    at = np.arange(rows, dtype=np.int32)
    step = Step(np.array(lab.tokens, np.int32), at, (span,), at[-1:])
    state = lab.backend.state_cache(lab.model.state, (len(table),) * len(lab.model.groups))
    lab.backend.method, values = watching, {}
    for segment in lab.segments:
        values = lab.backend.run(segment, step, state, values)
    means = {name: float(np.mean(found)) for name, found in watching.found.items()}
    return {"rows": rows, "looked": looked, **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", default="4096,8192")
    parser.add_argument("--looked", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    result: dict[str, Any] = {**describe(), "model": args.model, "lengths": []}
    for rows in map(int, args.rows.split(",")):
        result["lengths"].append(look(resolve(args.model), text, rows, args.looked))
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["lengths"][-1], indent=1), flush=True)


if __name__ == "__main__":
    main()
