"""What a busy neighbour costs: decoding alone and with another process on one of the cores.

Every round measures Strata and llama.cpp, each alone and then beside a process that only counts, on
the first of the cores that this one may use. Two threads on two cores of which one is shared have
three quarters of the machine at best if the work is shared out as it goes, half if every step waits
for the slower thread. Printed: tokens a second, and the share that is left of the quiet speed.

`taskset -c 0,1 python bench/busy_neighbour.py MODEL.gguf --llama-bin DIR --json out.json`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from against_llamacpp import Settings, ours, theirs
from machine import describe, peer_version

SIDES = {"strata": ours, "llama_cpp": theirs}
COUNTING = "import os; os.sched_setaffinity(0, {%d})\nwhile True: pass"


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """A process that takes what it can get of one core."""
    busy = subprocess.Popen([sys.executable, "-c", COUNTING % core])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def measure(model: str, work: str, settings: Settings, rounds: int) -> dict[str, Any]:
    """Medians over the rounds; ``left`` is the share of the quiet speed, round by round."""
    core = min(os.sched_getaffinity(0))
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for i in range(rounds):
        for side in list(SIDES) if i % 2 == 0 else list(SIDES)[::-1]:
            quiet = SIDES[side](model, work, settings)["value"]
            with neighbour(core):
                busy = SIDES[side](model, work, settings)["value"]
            found[side].append((quiet, busy))
    result: dict[str, Any] = {"model": Path(model).name, "work": work}
    for side, pairs in found.items():
        left = [busy / quiet for quiet, busy in pairs]
        result[side] = {
            "quiet": statistics.median(quiet for quiet, _ in pairs),
            "busy": statistics.median(busy for _, busy in pairs),
            "left": statistics.median(left),
            "left_least": min(left),
            "left_most": max(left),
        }
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--work", default="decode:64", help="%(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions within a process")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    settings = Settings(args.threads, args.repeat, None, args.llama_bin)
    report: dict[str, Any] = {
        "machine": describe(),
        "llama_cpp": peer_version(args.llama_bin),
        "threads": args.threads,
        "results": [],
    }
    for model in args.models:
        result = measure(model, args.work, settings, args.rounds)
        report["results"].append(result)
        for side in SIDES:
            s = result[side]
            print(
                f"{result['model'][:32]:34}{side:11}{s['quiet']:8.1f} tok/s quiet"
                f"{s['busy']:8.1f} busy: {100 * s['left']:.0f} % left "
                f"({100 * s['left_least']:.0f}-{100 * s['left_most']:.0f})",
                flush=True,
            )
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
