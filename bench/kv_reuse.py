"""Pieces of prompts whose KV was computed elsewhere, put together in another order (Prompt Cache).

    python bench/kv_reuse.py --model smollm2 --text FILE --out RESULT.json

A prompt is a beginning, pieces with two facts each, and questions about them. The beginning and the
questions are computed; keys and values of the pieces come from where each was computed alone, or
behind the beginning and nothing else, and are used as they were or with keys turned to their new
places, all of them or all but their first rows, which are computed where they stand now. Compared
with computing everything: KL divergence in nats and the same top token over the rows of the
questions, and the facts of which each digit is the likeliest token. ``computed`` is the share of
the prompt's rows that is computed. All of it is computed in numpy (``kv_lab.py``).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import kv_lab
from kv_lab import Lab, Method
from kv_managers import asked_of_parts
from kv_read import NAMES
from machine import describe
from strata.hub.references import resolve

AGAIN = 16


@dataclass(frozen=True)
class Way:
    """Where a piece was computed, whether its keys are turned, and how many of its rows are
    computed again."""

    behind: bool
    turned: bool
    again: int = 0

    @property
    def name(self) -> str:
        """For people."""
        where = "behind the beginning" if self.behind else "alone"
        again = f", {self.again} rows again" if self.again else ""
        return f"{where}, keys {'turned' if self.turned else 'as they were'}{again}"


WAYS = tuple(
    Way(behind, turned, again)
    for behind in (False, True)
    for turned, again in ((False, 0), (True, 0), (True, AGAIN))
)


@dataclass
class Piece:
    """Rows from ``first`` on, whose keys and values ``watched`` has from row ``own`` on."""

    first: int
    count: int
    watched: kv_lab.Watch
    own: int


class Reused(Method):
    """Rows see keys and values of pieces that were computed elsewhere."""

    def __init__(self, lab: Lab, pieces: list[Piece], way: Way) -> None:
        super().__init__()
        self.lab, self.pieces, self.way = lab, pieces, way

    def attend(
        self, layer: int, q: kv_lab.Floats, k: kv_lab.Floats, v: kv_lab.Floats, scale: float
    ) -> kv_lab.Floats:
        k, v = k.copy(), v.copy()
        for piece in self.pieces:
            kept = slice(piece.own + self.way.again, piece.own + piece.count)
            keys = piece.watched.k[layer][kept]
            if self.way.turned:
                by = np.full(len(keys), piece.first - piece.own, np.float32)
                keys = kv_lab.turned(self.lab, keys, by)
            here = slice(piece.first + self.way.again, piece.first + piece.count)
            k[here], v[here] = keys, piece.watched.v[layer][kept]
        return super().attend(layer, q, k, v, scale)


def pieces_of(lab: Lab, parts: list[list[int]], way: Way) -> list[Piece]:
    """All parts but the first one, each computed as ``way`` says."""
    out, first = [], len(parts[0])
    for part in parts[1:]:
        before = parts[0] if way.behind else []
        watched = kv_lab.Watch()
        lab.logits(watched, [*before, *part])
        out.append(Piece(first, len(part), watched, len(before)))
        first += len(part)
    return out


def one_text(args: argparse.Namespace, lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Every way with one prompt."""
    facts, questions, places = asked_of_parts(lab.tokenizer.encode, lab.tokens, args.rows, seed)
    pairs = [[*facts[i], *facts[i + 1]] for i in range(0, len(facts), 2)]
    # A text of its own before them, which is none of the pieces.
    parts = [lab.tokens[-args.beginning :], *pairs]
    ids = [*(i for part in parts for i in part), *questions]
    begin, moved = len(ids) - len(questions), args.beginning
    base = lab.logits(Method(), ids)
    out: dict[str, dict[str, float]] = {}

    def compare(name: str, logits: kv_lab.Floats, computed: float) -> None:
        best = logits.argmax(axis=-1)
        each = [range(place.start + moved, place.stop + moved) for place in places]
        hits = [all(best[at - 1] == ids[at] for at in place) for place in each]
        lost = kv_lab.compared(base[begin:], logits[begin:], ids[begin:])
        out[name] = lost | {"recalled": float(np.mean(hits)), "computed": computed}

    compare("all computed", base, 1.0)
    pieces: dict[bool, list[Piece]] = {}
    for way in WAYS:
        if way.behind not in pieces:
            pieces = {way.behind: pieces_of(lab, parts, way)}
        saved = sum(piece.count - way.again for piece in pieces[way.behind])
        logits = lab.logits(Reused(lab, pieces[way.behind], way), ids)
        compare(way.name, logits, 1 - saved / len(ids))
    return out


def summary(texts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Means of each way, and the least and greatest KL divergence of a text."""
    out: dict[str, dict[str, Any]] = {}
    for name in texts[0]:
        rows = [text[name] for text in texts]
        out[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        out[name]["kl_of_texts"] = [min(r["kl"] for r in rows), max(r["kl"] for r in rows)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=768, help="of pieces and questions")
    parser.add_argument("--beginning", type=int, default=64, help="tokens before the pieces")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text, path = args.text.read_text(encoding="utf-8"), resolve(args.model)
    result: dict[str, Any] = {"machine": describe(), "model": path.name, "rows": args.rows}
    result["beginning"] = args.beginning
    texts, size = [], len(text) // args.texts
    for number in range(args.texts):
        began = perf_counter()
        part = text[number * size : number * size + 8 * (args.rows + args.beginning)]
        lab = Lab(path, part, args.rows + args.beginning)
        texts.append(one_text(args, lab, number))
        result |= {"facts": len(texts) * len(NAMES), "ways": summary(texts), "texts": texts}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"text {number + 1} ({perf_counter() - began:.0f} s)", flush=True)
    for name, row in result["ways"].items():
        print(
            f"{name:52} KL {row['kl']:.3f}  same {row['same_top']:.3f}  "
            f"recalled {row['recalled']:.2f}  computed {row['computed']:.2f}"
        )


if __name__ == "__main__":
    main()
