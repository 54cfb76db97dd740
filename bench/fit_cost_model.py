"""Predicted against measured: what `strata plan` says and what `strata bench` then finds.

Prints one JSON object: a row for each model, prompt and budget with both figures, and the median
ratio of each (measured / predicted), by which the constants of `strata.plan.constants` can be
corrected. `python bench/fit_cost_model.py a.gguf b.gguf --prompts 128,512 --memory 512MB,1GB`.
Rows alternate with a fresh probe, so that a machine that changes its speed is measured as it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from typing import Any

COMPARED = ("ttft_s", "decode_tok_s", "load_s", "peak_bytes")


def strata(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "strata", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise SystemExit(f"{' '.join(command)}: {result['error']['message']}")
    return result


def compare(
    model: str, prompt: int, memory: str | None, args: argparse.Namespace
) -> dict[str, Any]:
    strata("probe", model, "--refresh")
    budget = [] if memory is None else ["--memory", memory]
    common = ["--threads", str(args.threads), *budget]
    depth = prompt + args.gen // 2
    plan = strata(
        "plan",
        model,
        *("--prompt-tokens", str(prompt), "--answer-tokens", str(args.gen)),
        *("--context", str(depth + args.gen + 1)),
        *common,
    )["plan"]["predicted"]
    bench = strata(
        "bench",
        model,
        *("--prompt", str(prompt), "--gen", str(args.gen), "--depth", str(prompt)),
        *("--repeat", str(args.repeat)),
        *common,
    )
    measured = bench | {"peak_bytes": bench["memory"]["peak_bytes"]}
    row: dict[str, Any] = {"model": model, "prompt": prompt, "memory": memory}
    for name in COMPARED:
        row[name] = {"predicted": plan[name], "measured": measured[name]}
    return row | {"bound": plan["bound"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--prompts", default="512")
    parser.add_argument("--memory", default=None, help="Budgets; none: all that is free.")
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    budgets = [None] if args.memory is None else args.memory.split(",")
    prompts = [int(p) for p in args.prompts.split(",")]
    rows = [
        compare(model, prompt, memory, args)
        for model, prompt, memory in itertools.product(args.models, prompts, budgets)
    ]
    ratios = {
        name: statistics.median(r[name]["measured"] / r[name]["predicted"] for r in rows)
        for name in COMPARED
    }
    print(json.dumps({"threads": args.threads, "rows": rows, "median_ratio": ratios}, indent=1))


if __name__ == "__main__":
    main()
