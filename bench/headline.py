"""A model larger than memory, as a user runs it: the plan, the run in a control group of just the
budget, and what happened against the plan.

`python bench/headline.py MODEL --memory 4GB [--gen 4] [--json]`. The disk is measured (direct reads
of the model itself) just before and just after; shares are of the mean of both.
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
from streaming import disk_bytes_s, forget

PROMPT = "The movement of bytes is the scarce thing, and"


def strata(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "strata", *arguments]


def show_plan(args: argparse.Namespace, limits: list[str]) -> None:
    command = strata("plan", str(args.model), *limits, "--answer-tokens", str(args.gen))
    print(f"$ strata plan {args.model.name} --memory {args.memory}", flush=True)
    subprocess.run([*command, "--prompt-tokens", "16"], check=True)


def run(args: argparse.Namespace, limits: list[str]) -> dict[str, Any]:
    """What a run in a group of the budget said and took."""
    options = ["--max-tokens", str(args.gen), "--ignore-eos", "--raw", "--explain", "--json"]
    with group(parse_size(args.memory)) as made:
        done = made.run(strata("run", str(args.model), PROMPT, *limits, *options), args.timeout)
        peak = made.peak
    if done.returncode != 0:
        raise SystemExit(f"return code {done.returncode}: {done.stdout or done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "group_peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--gen", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    limits = ["--memory", args.memory, "--threads", str(args.threads)]
    limits += ["--context", str(args.context)]
    if not args.json:
        show_plan(args, limits)
    forget(args.model)
    before = disk_bytes_s(args.model)
    report = run(args, limits)
    disk = (before + disk_bytes_s(args.model)) / 2
    explained = report["explanation"]
    decode = explained["decode"]
    result = {
        "machine": describe(),
        "model": args.model.name,
        "model_bytes": args.model.stat().st_size,
        "memory": parse_size(args.memory),
        "disk_bytes_s": disk,
        "disk_share": decode["disk_bytes_s"] / disk,
        "group_peak_bytes": report["group_peak_bytes"],
        "explanation": explained,
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    size, peak = result["model_bytes"] / 1e9, result["group_peak_bytes"] / 1e6
    print(f"\n$ strata run {args.model.name} ... --memory {args.memory} --explain")
    print(f"{size:.1f} GB in a group of {args.memory}: its peak was {peak:.0f} MB")
    print(
        f"{decode['tokens_s']:.3g} tok/s (predicted {decode['predicted_tokens_s']:.3g}), "
        f"{decode['disk_bytes_s'] / 1e9:.2f} GB/s over all of {decode['sweeps']} sweeps, "
        f"{result['disk_share']:.0%} of the disk's {disk / 1e9:.2f} GB/s before and after"
    )
    print(explained["verdict"])


if __name__ == "__main__":
    main()
