"""KV managers under one budget: what each loses and reads, as a table and as a picture.

    python bench/kv_managers.py --model smollm2 --text FILE --out R.json --picture R.svg

Each may attend over --budget positions (blocks and first ones among them) of a text in which eight
facts stand, and is asked for them at the end; ``recalled`` is a fact whose digits are each the
likeliest token. KL divergence is from exact attention over all rows, in nats. ``read`` is what a
row attends over of the KV that there is, ``kept`` what has to lie somewhere at the end. All of them
are computed in numpy (``kv_lab.py``); StreamingLLM runs in the engine as --kv-window, choosing
blocks by bounds as --kv-read, and exact KV on disk where it has no room, the others nowhere yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import kv_lab
from kv_lab import Bounded, Lab, Method
from kv_read import NAMES
from machine import describe
from strata.backends.reference.backend import OPS
from strata.hub.references import resolve
from strata.text import Tokenizer


class InfiniGen(Method):
    """InfiniGen (arXiv 2406.19707): all KV is kept, in slower memory; which keys a row reads is
    said by a query that the layer before could have made, from what goes into it, over the few
    directions of a head that weigh most. ``skew`` are these, [dim, some] of each layer and KV head,
    from another text. The first layer reads everything, as there is none before it."""

    def __init__(
        self, budget: int, skew: dict[int, kv_lab.Floats], queries: Callable[[int], Any]
    ) -> None:
        super().__init__()
        self.budget, self.skew, self.queries = budget, skew, queries

    def attend(
        self, layer: int, q: kv_lab.Floats, k: kv_lab.Floats, v: kv_lab.Floats, scale: float
    ) -> kv_lab.Floats:
        rows, kv_heads, guess = len(q), k.shape[1], self.queries(layer)
        seen = kv_lab.causal(rows)
        keep = np.broadcast_to(seen, (kv_heads, rows, rows))
        if guess is not None:
            a = np.einsum(
                "hde,rhgd->hrge", self.skew[layer], guess.reshape(rows, kv_heads, -1, q.shape[2])
            )
            b = np.einsum("hde,rhd->hre", self.skew[layer], k)
            s = np.einsum("hrge,hke->hrgk", a, b).max(axis=2)
            s = np.where(seen, s, -np.inf)
            s[:, np.arange(rows), np.arange(rows)] = np.inf
            least = np.sort(s, axis=-1)[..., -self.budget, None] if rows > self.budget else -np.inf
            keep = (s >= least) & seen
        self.whole += float(seen.sum()) * kv_heads
        self.bytes += float(keep.sum())
        each = np.repeat(keep, q.shape[1] // kv_heads, axis=0)
        return kv_lab.weigh(kv_lab.softmax(kv_lab.scores(q, k, scale), each), v)


class Foresight:
    """Queries of a layer from what goes into the one before."""

    def __init__(self, lab: Lab) -> None:
        self.inputs: dict[int, Any] = {}
        run = lab.backend.run

        def watched(loaded: Any, step: Any, state: Any, inputs: Any) -> Any:
            self.step, self.state = step, state
            for op in loaded.segment.program.ops:
                if op.kind == "attention":
                    self.inputs[op.attrs["layer"]] = (loaded, inputs)
            return run(loaded, step, state, inputs)

        lab.backend.run = watched

    def __call__(self, layer: int) -> kv_lab.Floats | None:
        """[rows, heads, dim], or None of the first layer."""
        if layer - 1 not in self.inputs:
            return None
        loaded, _ = self.inputs[layer]
        _, before = self.inputs[layer - 1]
        program = loaded.segment.program
        (attention,) = (op for op in program.ops if op.kind == "attention")
        needed, ops = {attention.inputs[0]}, []
        for op in reversed(program.ops[: program.ops.index(attention)]):
            if op.output in needed:
                ops.append(op)
                needed |= set(op.inputs)
        values = {**loaded.weights, **{name: before[name] for name in program.inputs}}
        for op in reversed(ops):
            operands = [values[name] for name in op.inputs]
            values[op.output] = OPS[op.kind](op.attrs, operands, self.step, self.state)
        q = values[attention.inputs[0]]
        return q.reshape(len(q), attention.attrs["heads"], -1)


def skews(watched: kv_lab.Watch, part: float) -> dict[int, kv_lab.Floats]:
    """The directions in which queries and keys of each KV head weigh most together."""
    out = {}
    for layer, products in watched.key_products().items():
        k = watched.k[layer].transpose(1, 0, 2)
        both = products / np.trace(products, axis1=1, axis2=2)[:, None, None]
        own = np.matmul(k.transpose(0, 2, 1), k)
        both = both + own / np.trace(own, axis1=1, axis2=2)[:, None, None]
        vectors = np.linalg.eigh(both)[1]
        out[layer] = vectors[..., -round(part * k.shape[2]) :].astype(np.float32)
    return out


def asked(
    encode: Callable[[str], list[int]], text: list[int], rows: int, seed: int
) -> tuple[list[int], list[range]]:
    """A text of so many tokens with facts, and questions with their answers behind it; where the
    answers' digits stand."""
    parts, questions, places = asked_of_parts(encode, text, rows, seed)
    return [*(i for part in parts for i in part), *questions], places


def asked_of_parts(
    encode: Callable[[str], list[int]], text: list[int], rows: int, seed: int
) -> tuple[list[list[int]], list[int], list[range]]:
    """The same in parts: of each fact what stands around it, and the questions."""
    random = np.random.default_rng(seed)
    order, codes, parts = random.permutation(len(NAMES)), [], list[list[int]]()
    questions, places, ids = [], [], list[int]()
    for who in order:
        codes.append("".join(map(str, random.integers(0, 10, 4))))
        questions.append(encode(f"\n\nThe secret code of {NAMES[who]} is"))
    ends = [encode(f" {code}") for code in codes]
    facts = [[*a, *b, *encode(".\n\n")] for a, b in zip(questions, ends, strict=True)]
    left = rows - sum(
        len(f) + len(q) + len(e) for f, q, e in zip(facts, questions, ends, strict=True)
    )
    each = left // len(NAMES)
    for place, fact in enumerate(facts):
        part = text[place * each : (place + 1) * each]
        parts.append([*part[: each // 2], *fact, *part[each // 2 :]])
    before = sum(map(len, parts))
    for place in random.permutation(len(NAMES)):
        ids += questions[place]
        places.append(range(before + len(ids), before + len(ids) + len(ends[place])))
        ids += ends[place]
    return parts, ids, places


def methods(
    args: argparse.Namespace, skew: dict[int, kv_lab.Floats], foresight: Foresight
) -> dict[str, tuple[Callable[[], Method], bool]]:
    """And whether all KV has to be kept."""
    budget, block = args.budget, args.block
    return {
        "paged, exact": (Method, True),
        "InfiniGen": (lambda: InfiniGen(budget, skew, foresight), True),
        "LeoAM (bounds of blocks)": (lambda: Bounded(block, top=budget // block - 2), True),
        "H2O": (lambda: kv_lab.heavy_hitters(budget, budget // 2), False),
        "StreamingLLM": (lambda: kv_lab.window(budget - kv_lab.SINKS, kv_lab.SINKS), False),
        "window alone": (lambda: kv_lab.window(budget, 0), False),
    }


def picture(result: dict[str, Any]) -> str:
    """Bars of what is recalled and lost, for each manager."""
    rows = result["managers"]
    most = max(row["kl"] for row in rows.values()) or 1.0
    height = 34 * len(rows) + 60
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" '
        f'viewBox="0 0 760 {height}" font-family="sans-serif" font-size="13">',
        '<rect width="760" height="100%" fill="white"/>',
        '<text x="190" y="20">facts recalled</text><text x="380" y="20">KL divergence, nats</text>'
        '<text x="570" y="20">KV read, of all</text>',
    ]
    for i, (name, row) in enumerate(rows.items()):
        y = 34 + 34 * i
        out.append(f'<text x="8" y="{y + 16}">{escape(name)}</text>')
        bars = (
            (190, row["recalled"], f"{100 * row['recalled']:.0f} %", "#2f6fab"),
            (380, row["kl"] / most, f"{row['kl']:.3f}", "#b5532a"),
            (570, row["read"], f"{100 * row['read']:.0f} %", "#5a7d3a"),
        )
        for x, part, said, colour in bars:
            width = max(1, round(120 * part))
            out.append(f'<rect x="{x}" y="{y}" width="{width}" height="22" fill="{colour}"/>')
            out.append(f'<text x="{x + 126 * part + 6:.0f}" y="{y + 16}">{said}</text>')
    said = f"{result['model']}, {result['rows']} positions, a budget of {result['budget']}"
    out += [f'<text x="8" y="{height - 12}" fill="#555">{escape(said)}</text>', "</svg>"]
    return "\n".join(out) + "\n"


def measured(args: argparse.Namespace, result: dict[str, Any], save: Callable[[], None]) -> None:
    path, text = resolve(args.model), args.text.read_text(encoding="utf-8")
    half = len(text) // 2
    lab = Lab(path, text[half : half + 8 * args.rows], args.rows)
    other = Lab(path, text[: 8 * args.rows], 512)
    watch = kv_lab.Watch()
    other.logits(watch)
    foresight, skew = Foresight(lab), skews(watch, 0.3)
    del other, watch
    tokenizer: Tokenizer = lab.tokenizer
    texts = [
        asked(tokenizer.encode, lab.tokens, args.rows, args.seed + i) for i in range(args.texts)
    ]
    # In f16, of a row in the middle of a text, as rows are in the mean.
    each = sum(o.attrs["kv_heads"] * (o.attrs["k_dim"] + o.attrs["v_dim"]) for o in lab.attentions)
    result["kv_bytes_a_token"] = 2 * each * args.rows // 2
    positions = sum(len(ids) for ids, _ in texts) / len(texts)
    bases: list[kv_lab.Floats] = []
    for name, (make, all_kept) in methods(args, skew, foresight).items():
        if name in result["managers"] and (bases or name != "paged, exact"):
            continue
        began, rows = perf_counter(), []
        for i, (ids, places) in enumerate(texts):
            method = make()
            logits = lab.logits(method, ids)
            if name == "paged, exact":
                bases.append(logits)
            best = logits.argmax(axis=-1)
            hits = [all(best[at - 1] == ids[at] for at in place) for place in places]
            read = method.bytes / method.whole if method.whole else 1.0
            rows.append(
                kv_lab.compared(bases[i], logits, ids) | {"recalled": np.mean(hits), "read": read}
            )
        row = {key: float(np.mean([each[key] for each in rows])) for key in rows[0]}
        row["kept"] = 1.0 if all_kept else args.budget / positions
        row["read_bytes_a_token"] = row["read"] * result["kv_bytes_a_token"]
        result["managers"][name] = row
        print(f"{name:26}", json.dumps(row), f"({perf_counter() - began:.0f} s)", flush=True)
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument(
        "--rows", type=int, default=1024, help="tokens of a text with its questions"
    )
    parser.add_argument("--budget", type=int, default=192, help="positions that a row may see")
    parser.add_argument("--block", type=int, default=16, help="keys that share their bounds")
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "model": resolve(args.model).name}
    result |= {"rows": args.rows, "budget": args.budget, "block": args.block}
    result |= {"facts": args.texts * len(NAMES), "managers": {}}

    def save() -> None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        args.picture.write_text(picture(result), encoding="utf-8")

    measured(args, result, save)


if __name__ == "__main__":
    main()
