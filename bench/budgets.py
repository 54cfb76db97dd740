"""Budgets obeyed and peaks predicted: models in control groups of exactly their budgets.

`python bench/budgets.py MODEL,BUDGET... [--prompt 200] [--gen 24] [--threads 2] [--json]`

BUDGET is a size, `floor` for the smallest that does, or `full` for the one in which everything
stays in memory. Each case is `strata bench` in a group of the budget, page cache included; a row
has the peak that came, the peak predicted, and their ratio, which is to be from 1 to 1.05.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from cgroups import group, why_not
from machine import describe
from strata.sizes import parse_size

NEAR = 1.05


def strata(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "strata", *arguments, "--json"]


def resolve(model: str, budget: str, args: argparse.Namespace) -> int:
    """Bytes of a budget; those with a name are the ends of the planner's table."""
    if budget not in ("floor", "full"):
        return parse_size(budget)
    work = ["--prompt-tokens", str(args.prompt), "--answer-tokens", str(args.gen)]
    context = ["--context", str(args.prompt + args.gen + 1)]
    command = strata("plan", model, *work, *context, "--threads", str(args.threads))
    done = subprocess.run(command, capture_output=True, text=True)
    table = json.loads(done.stdout)
    if "error" in table:
        raise SystemExit(f"{model}: {table['error']['message']}")
    return int(table["budgets"][0 if budget == "floor" else -1]["budget"])


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a case; one that was killed, or that failed, has what it said instead."""
    model, _, name = case.rpartition(",")
    budget = resolve(model, name, args)
    work = ["--prompt", str(args.prompt), "--gen", str(args.gen), "--depth", str(args.prompt)]
    limits = ["--memory", f"{budget}B", "--threads", str(args.threads), "--repeat", "1"]
    with group(budget) as made:
        done = made.run(strata("bench", model, *work, *limits, "--explain"), args.timeout)
    row = {"model": Path(model).name, "named": name, "budget": budget}
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        return {**row, "return_code": done.returncode, "said": said, "holds": False}
    report = json.loads(done.stdout)
    explained = report["explanation"]
    peak, predicted = explained["peak_bytes"], explained["predicted_peak_bytes"]
    return {
        **row,
        "peak": peak,
        "predicted": predicted,
        "ratio": predicted / peak,
        "sweep_bytes": explained["sweep_bytes"],
        "decode_tok_s": report["decode_tok_s"],
        "holds": peak <= predicted <= min(budget, NEAR * peak),
    }


def line(row: dict[str, Any]) -> str:
    start = f"{row['model'][:32]:32s} {row['named']:>6s} {row['budget'] / 1e6:8.0f} MB"
    if "peak" not in row:
        return f"{start}  return code {row['return_code']}: {row['said']}"
    sizes = f"{row['peak'] / 1e6:8.1f} MB {row['predicted'] / 1e6:8.1f} MB {row['ratio']:.3f}"
    streams = f"{row['sweep_bytes'] / 1e6:7.0f} MB a sweep" if row["sweep_bytes"] else "resident"
    return f"{start} {sizes} {row['decode_tok_s']:8.3g} tok/s  {streams}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", metavar="MODEL,BUDGET")
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--gen", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1800)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    rows = []
    for case in args.cases:
        rows.append(measure(case, args))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    result = {
        "machine": describe(),
        "cases": len(rows),
        "hold": sum(row["holds"] for row in rows),
        "least": min(ratios, default=None),
        "most": max(ratios, default=None),
        "rows": rows,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['hold']} of {result['cases']} hold", end="")
    print(f"; predicted / actual peak {min(ratios):.3f} to {max(ratios):.3f}" if ratios else "")
    if result["hold"] < len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
