"""What methods of keeping less KV, or reading less of it, cost on a real model.

    python bench/kv_methods.py --model smollm2 --text FILE [--rows 1024] [--out RESULT.json]

Every method is computed in numpy (``kv_lab.py``) on the model's own keys and values, and its logits
are compared with those of exact attention: KL divergence, same top token, perplexity. ``share`` is
what is kept, or read, of float16's bytes. Premises that methods rest on are measured beside them. A
run that was ended goes on with what is missing in RESULT.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import kv_lab
from kv_lab import Blocks, Bounded, Codec, Lab, Method, Watch
from strata.backends.kv_types import KV_TYPES, choose_kv_type
from strata.hub.references import resolve

EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1)


def methods(lab: Lab, watched: Watch) -> dict[str, Callable[[], Method]]:
    """All of them, by name; calibrated with what was watched on another text."""
    dim = next(iter(watched.k.values())).shape[-1]
    out: dict[str, Callable[[], Method]] = {}

    def codec(name: str, k: Any, v: Any, bits: tuple[float, float], **more: int) -> None:
        out[name] = lambda: Codec(k, v, bits, **more)

    plain, turned = kv_lab.per_token, lambda b: kv_lab.per_token(b, rotated=True)
    scale = 32 / dim
    for kv in ("bf16", "q8_0", "int4", "q8_0:int4", "int4:q8_0"):
        kept = choose_kv_type(kv, KV_TYPES)
        size = [8 * kept.of(0)[0].key_nbytes(dim) / dim, 8 * kept.of(0)[1].value_nbytes(dim) / dim]
        codec(kv, kv_lab.native(kept, 0), kv_lab.native(kept, 1), (size[0], size[1]))
    for bits in (4, 3, 2):
        b = bits + scale
        codec(f"token int{bits}", plain(bits, rotated=False), plain(bits, rotated=False), (b, b))
        codec(f"rotated int{bits}", turned(bits), turned(bits), (b, b))
        grouped = kv_lab.per_channel(bits, 32)
        codec(f"KIVI int{bits}", grouped, plain(bits, rotated=False), (bits + 1, b), sealed=32)
        turbo = kv_lab.turbo(bits, dim)
        codec(f"TurboQuant {bits}", turbo, turbo, (bits + 16 / dim,) * 2)
    codec("K4 V2", turned(4), turned(2), (4 + scale, 2 + scale))
    codec("K2 V4", turned(2), turned(4), (2 + scale, 4 + scale))
    keys, values = watched.key_products(), watched.weighed
    codec("OSCAR int2", kv_lab.oscar(2, keys), kv_lab.oscar(2, values), (2 + scale,) * 2, sealed=32)
    codec("rotated int2, recent whole", turned(2), turned(2), (2 + scale,) * 2, sealed=32)

    def before_rope(_: int, k: Any) -> Any:
        raw = kv_lab.turned_back(lab, k, -1)
        return kv_lab.turned_back(lab, kv_lab.per_channel(3, 32)(0, raw), 1)

    codec(
        "channel int3 before RoPE", before_rope, plain(3, rotated=False), (4, 3 + scale), sealed=32
    )
    size = len(lab.tokens) // 5
    out["window"] = lambda: kv_lab.window(size, 0)
    out["sinks and window"] = lambda: kv_lab.window(size - kv_lab.SINKS, kv_lab.SINKS)
    out["H2O"] = lambda: kv_lab.heavy_hitters(size, size // 2)
    for block in (16, 64):
        top = max(1, size // block - 2)
        out[f"bounds, block {block}, a fifth"] = lambda b=block, t=top: Bounded(b, top=t)
        for epsilon in EPSILONS:
            out[f"bounds, block {block}, epsilon {epsilon:g}"] = lambda b=block, e=epsilon: Bounded(
                b, epsilon=e
            )
    for by in ("antidiagonals", "diagonal", "random"):
        out[f"blocks by {by}"] = lambda by=by: Blocks(64, 0.3, by)
    return out


def premises(watched: Watch) -> dict[str, float]:
    """What MiniCache, DeltaKV and KVTC rest on."""
    layers = sorted(watched.k)
    near: dict[str, list[float]] = {"keys": [], "values": []}
    left: dict[str, list[float]] = {"keys": [], "values": []}
    for what, kept in (("keys", watched.k), ("values", watched.v)):
        for a, b in zip(layers[len(layers) // 2 :], layers[len(layers) // 2 + 1 :], strict=False):
            x, y = kept[a], kept[b]
            cos = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
            near[what].append(float(np.median(cos)))
        for layer in layers:
            # A residual against the nearest of every eighth earlier token, both without the mean.
            x = kept[layer].reshape(len(kept[layer]), -1)
            x = x - x.mean(axis=0)
            at = np.arange(len(x))
            distance = ((x[:, None] - x[None, ::8]) ** 2).sum(-1)
            distance = np.where(at[None, ::8] < at[:, None], distance, np.inf).min(axis=-1)
            left[what].append(float(np.median(distance[64:] / (x[64:] ** 2).sum(-1))))
    return {
        **{
            f"MiniCache: median cosine of {w} of neighbouring layers": float(np.median(x))
            for w, x in near.items()
        },
        **{
            f"DeltaKV: median energy of {w} left by the nearest reference": float(np.median(x))
            for w, x in left.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1024, help="tokens, a multiple of 64")
    parser.add_argument("--only", help="methods whose names have this")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    half = len(text) // 2
    lab = Lab(resolve(args.model), text[half : half + 8 * args.rows], args.rows)
    other = Lab(resolve(args.model), text[: 8 * args.rows], min(args.rows, 512))
    result: dict[str, Any] = {"model": args.model, "rows": len(lab.tokens), "methods": {}}
    if args.out and args.out.exists():
        result = json.loads(args.out.read_text())
    watched = Watch()
    other.logits(watched)
    del other
    result["premises"] = premises(watched)
    base = lab.logits(Method())
    result["methods"]["exact"] = {**kv_lab.compared(base, base, lab.tokens), "share": 1.0}
    for name, make in methods(lab, watched).items():
        if name in result["methods"] or (args.only and args.only not in name):
            continue
        began, method = perf_counter(), make()
        row: dict[str, Any] = kv_lab.compared(base, lab.logits(method), lab.tokens)
        row["share"] = method.bytes / method.whole
        if isinstance(method, Blocks):
            row["mass"] = float(np.mean(method.mass))
        result["methods"][name] = row
        print(
            f"{name:32} KL {row['kl']:8.5f}  same {row['same_top']:.3f}  "
            f"perplexity {row['perplexity']:8.3f}  share {row['share']:.3f}  "
            f"({perf_counter() - began:.0f} s)",
            flush=True,
        )
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result["premises"].items():
        print(f"{name}: {value:.3f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
