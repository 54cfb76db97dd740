"""Decoding behind a long context by type of KV, beside llama.cpp with its own.

    taskset -c 0,1 python bench/kv_decode.py MODEL.gguf --llama-bin DIR --out R.json [--depth 8000]

Every round runs each side once, in a process of its own, the next side first each time; ratios are
formed round by round, so that a change of the machine's pace changes all sides. Rounds that are in
R.json already are not run again. llama.cpp keeps q4_0 with its own rotation and flash attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from against_llamacpp import bench_samples, run
from machine import describe, peer_version

HERE = Path(__file__).parent
SIDES = ("strata f16", "strata q8_0", "strata int4", "llama.cpp f16", "llama.cpp q4_0")
PAIRS = (
    ("strata int4", "strata f16"),
    ("strata int4", "llama.cpp q4_0"),
    ("strata f16", "llama.cpp f16"),
    ("llama.cpp q4_0", "llama.cpp f16"),
)


def tokens_s(side: str, args: argparse.Namespace) -> float:
    """Of one process: the median of its repetitions."""
    who, kv_type = side.split()
    if who == "strata":
        command = [sys.executable, HERE / "our_side.py", args.model]
        command += [f"depth:{args.depth}:{args.tokens}", "--kv-type", kv_type]
        done = run([*command, "--threads", args.threads, "--repeat", args.repeat])
        return statistics.median(json.loads(done.out)["samples"])
    tool: list[object] = [args.llama_bin / "llama-bench", "-m", args.model, "-t", args.threads]
    tool += ["-p", 0, "-n", args.tokens, "-d", args.depth, "-r", args.repeat, "-fa", 1]
    return statistics.median(
        bench_samples(run([*tool, "-ctk", kv_type, "-ctv", kv_type, "-o", "json"]).out)
    )


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of each side, and ratios with their least and greatest."""
    found: dict[str, Any] = {side: statistics.median(r[side] for r in rounds) for side in rounds[0]}
    for side, other in PAIRS:
        if side in rounds[0] and other in rounds[0]:
            ratios = [r[side] / r[other] for r in rounds]
            found[f"{side} / {other}"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bin", type=Path, help="without it only our sides are run")
    parser.add_argument("--depth", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sides = [s for s in SIDES if args.llama_bin or s.startswith("strata")]
    done: dict[str, Any] = {"rounds": []}
    if args.out.exists():
        done = json.loads(args.out.read_text())
    rounds: list[dict[str, float]] = done["rounds"]
    while len(rounds) < args.rounds:
        first = len(rounds) % len(sides)
        order = sides[first:] + sides[:first]
        rounds.append({side: tokens_s(side, args) for side in order})
        done["machine"] = describe()
        if args.llama_bin:
            done["llama_cpp"] = peer_version(args.llama_bin)
        done |= {"model": args.model.name, "depth": args.depth, "tokens": args.tokens}
        done["summary"] = summary(rounds)
        args.out.write_text(json.dumps(done, indent=1) + "\n")
    print(json.dumps(done["summary"], indent=1))


if __name__ == "__main__":
    main()
