"""From the command to its first token, beside llama.cpp's, with the file in the page cache.

`python bench/start.py MODEL.gguf... --peer LLAMA_CPP_TOOLS [--turns 10] [--threads 2]`.
Both are asked for one token, in turns. Seconds are those to the first byte of the answer and to the
end of the process; processor seconds, which a busy machine changes less, are those of the whole
process. Asked with two letters, and with a text of some hundred tokens. Prints one JSON object with
medians and all turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe, peer_version

PROMPTS = {"short": "Hi", "long": "The quick brown fox jumps over the lazy dog. " * 12}
MEASURES = ("first_byte_s", "end_s", "cpu_s")


def strata(model: Path, prompt: str, threads: int) -> list[str]:
    options = ["--max-tokens", "1", "--raw", "--quiet", "--threads", str(threads)]
    return [sys.executable, "-m", "strata", "run", str(model), prompt, *options]


def llama_cpp(tools: Path, model: Path, prompt: str, threads: int) -> list[str]:
    options = ["-n", "1", "-t", str(threads), "-no-cnv", "--no-display-prompt", "--no-perf"]
    return [str(tools / "llama-completion"), "-m", str(model), "-p", prompt, *options]


def timed(command: list[str]) -> dict[str, float]:
    before = os.times()
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        answered = time.perf_counter()
        process.stdout.read()
    end = time.perf_counter()
    after = os.times()
    if process.returncode != 0 or not first:
        raise SystemExit(f"gave no token (return code {process.returncode}): {' '.join(command)}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"first_byte_s": answered - start, "end_s": end - start, "cpu_s": cpu}


def median(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in MEASURES}


def compare(commands: dict[str, list[str]], turns: int) -> dict[str, Any]:
    """Medians and turns of each, after one of each that is not counted."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(turns + 1):
        # Who comes first changes from turn to turn.
        for name in sorted(commands, reverse=turn % 2 == 0):
            took = timed(commands[name])
            if turn > 0:
                seen[name].append(took)
    return {name: {"median": median(took), "turns": took} for name, took in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--peer", type=Path, help="where llama-completion is")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "prompts": PROMPTS, "turns": args.turns}
    if args.peer:
        result["llama.cpp"] = peer_version(args.peer)
    result["models"] = {}
    for model in args.models:
        asked = result["models"][model.name] = {}
        for name, prompt in PROMPTS.items():
            commands = {"strata": strata(model, prompt, args.threads)}
            if args.peer:
                commands["llama.cpp"] = llama_cpp(args.peer, model, prompt, args.threads)
            asked[name] = compare(commands, args.turns)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
