"""How near answers are to those of floats with activations of 8 or 16 bits, and what that takes.

`python bench/activations.py MODEL... --text FILE [--chunks 4] [--turns 5] [--json FILE]`: the
perplexity on the first windows of a text, with floats (the reference backend), and by turns the
processor seconds of a prompt of 128 tokens and of 64 tokens that follow one, which change less on
a busy machine than those of a clock. Prints a line a model; writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from machine import describe
from strata import LLM
from strata.backends.settings import ACTIVATIONS

WORKS = {"prefill_128": {"prompt": 128, "gen": 0}, "decode_64": {"prompt": 0, "gen": 64}}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def processor_s(llm: LLM, work: dict[str, int], repeat: int = 3) -> float:
    before = time.process_time()
    llm.measure(**work, repeat=repeat)
    # A short run before them warms up, which is as long for both.
    return (time.process_time() - before) / repeat


def measured(model: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    size: dict[str, Any] = {"context": args.context, "chunks": args.chunks}
    found: dict[str, Any] = {"model": Path(model).name, **size}
    with LLM(model, backend="reference", context=args.context) as llm:
        want = llm.perplexity(text, **size).perplexity
    found["perplexity"] = {"floats": want}
    seconds: dict[str, dict[str, list[float]]] = {w: {a: [] for a in ACTIVATIONS} for w in WORKS}
    opened = {
        a: LLM(model, context=args.context, threads=args.threads, activations=a)
        for a in ACTIVATIONS
    }
    for name, llm in opened.items():
        found["perplexity"][name] = llm.perplexity(text, **size).perplexity
    for turn in range(args.turns):
        for name in ACTIVATIONS if turn % 2 else ACTIVATIONS[::-1]:
            for work, asked in WORKS.items():
                seconds[work][name].append(processor_s(opened[name], asked))
    found["processor_s"] = {
        work: {
            **{name: spread(took) for name, took in by_name.items()},
            "int16_by_int8": spread(
                [b / a for a, b in zip(by_name["int8"], by_name["int16"], strict=True)]
            ),
        }
        for work, by_name in seconds.items()
    }
    for llm in opened.values():
        llm.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    report: dict[str, Any] = {"machine": describe(), "text": args.text.name, "results": []}
    for model in args.models:
        result = measured(model, text, args)
        report["results"].append(result)
        ppl, took = result["perplexity"], result["processor_s"]
        off = {a: f"{100 * (ppl[a] / ppl['floats'] - 1):+.3f} %" for a in ACTIVATIONS}
        times = {w: round(took[w]["int16_by_int8"]["median"], 2) for w in WORKS}
        print(result["model"], f"{ppl['floats']:.4f}", off, times, flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
