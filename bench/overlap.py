"""How much of reading and computing goes on at once, in budgets in which less and less stays.

    python bench/overlap.py MODEL --memory 900MB 800MB ... [--rounds 5] > result.json

In each round MODEL decodes with all of its weights in memory, which gives the seconds of work of a
token; then the disk is measured by direct reads of the model itself, MODEL decodes in each budget,
and the disk is measured again. ``ratio`` is the seconds of a token in the budget over the longer of
both: its work alone, and reading alone what it read at the mean of the two rates. 1 is perfect.
``within`` is the same from that run alone, whatever the disk gave just then: over the longer of the
time in which kernels did not wait for weights, and that in which some read was under way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from against_llamacpp import run
from machine import describe
from strata.sizes import parse_size
from streaming import disk_bytes_s, forget


def bench(model: Path, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """What ``strata bench`` tells of decoding."""
    command = [sys.executable, "-m", "strata", "bench", model, "--json", "--quiet", "--explain"]
    command += ["--prompt", 0, "--gen", args.gen, "--repeat", 3, "--threads", args.threads]
    said: dict[str, Any] = json.loads(run([*command, *options]).out)
    return said


def in_budget(model: Path, args: argparse.Namespace, memory: str) -> dict[str, float]:
    """Seconds of a token, the bytes it read, and what the disk gives just before and after."""
    forget(model)
    before = disk_bytes_s(model)
    said = bench(model, args, "--memory", memory)
    decode = said["explanation"]["decode"]
    token_s = decode["seconds"] / decode["sweeps"]
    read_bytes = decode["disk_bytes"] / decode["sweeps"]
    return {
        "token_s": token_s,
        "read_bytes": read_bytes,
        "disk_bytes_s": (before + disk_bytes_s(model)) / 2,
        "computing_s": token_s * (1 - decode["waited_share"]),
        "reading_s": read_bytes / (decode["reading_bytes_s"] or 1),
    }


def one_round(args: argparse.Namespace) -> dict[str, Any]:
    """All budgets, and the work alone."""
    decode = bench(args.model, args)["explanation"]["decode"]
    work_s = decode["seconds"] / decode["sweeps"]
    found: dict[str, Any] = {"work_s": work_s}
    for memory in args.memory:
        row = in_budget(args.model, args, memory)
        row["read_s"] = row["read_bytes"] / row["disk_bytes_s"]
        row["ratio"] = row["token_s"] / max(work_s, row["read_s"])
        row["within"] = row["token_s"] / max(row["computing_s"], row["reading_s"])
        found[memory] = row
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", nargs="+", required=True)
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for memory in args.memory:
        parse_size(memory)
    rounds = [one_round(args) for _ in range(args.rounds)]
    budgets = {}
    for memory in args.memory:
        plan = run(
            [sys.executable, "-m", "strata", "plan", args.model, "--memory", memory, "--json"]
        )
        budgets[memory] = {"streamed": json.loads(plan.out)["plan"]["streamed"]}
        for name in ("ratio", "within"):
            ratios = [r[memory][name] for r in rounds]
            budgets[memory] |= {
                name: statistics.median(ratios),
                f"{name}_least": min(ratios),
                f"{name}_most": max(ratios),
            }
        print(memory, budgets[memory], file=sys.stderr)
    result = {"machine": describe(), "model": args.model.name, "budgets": budgets}
    print(json.dumps({**result, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
