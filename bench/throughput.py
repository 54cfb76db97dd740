"""Tokens a second against requests together: what the planner says beside what `strata batch` does.

    python bench/throughput.py MODEL --memory SIZE... [--together 1 2 4 ...] [--prompt 96]
                               [--answer 24] [--threads N] [--out FILE] [--resume]

MODEL is a file, or a shape such as llama-3.1-8b:Q4_K_M:8 (of so many layers), which is written
first (`--folder` keeps it). In each budget `strata plan --throughput` predicts a curve, and
`strata batch --parallel N` answers N requests, each N in a process of its own with the page cache
of the weights dropped before; then once without `--parallel`, on as many requests as the longest.
``ratio`` is measured over predicted tokens a second, ``of_best`` what the planner's own choice
gives of the best point that was measured, and ``tokens_per_sweep`` counts what no clock does.
Where reading decides, ``at_its_disk`` has the curve for the disk that the first point found, in
place of the probe's. ``--resume`` goes on with the points that FILE does not have yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from against_llamacpp import run
from machine import describe
from speculation import made
from strata.sizes import parse_size
from streaming import forget


def predicted(
    model: Path, memory: str, args: argparse.Namespace, machine: Path | None = None
) -> dict[str, Any]:
    """The planner's curve: tokens a second by requests together, and its choice."""
    command = [sys.executable, "-m", "strata", "plan", model, "--throughput", "--json"]
    command += ["--memory", memory, "--prompt-tokens", args.prompt, "--answer-tokens", args.answer]
    command += ["--context", args.prompt + args.answer + 32, "--threads", args.threads]
    command += [] if machine is None else ["--machine", machine]
    said: dict[str, Any] = json.loads(run(command).out)
    return said


def requests(target: Path, count: int, args: argparse.Namespace) -> None:
    """Write so many requests, of words that hardly two have alike."""
    random = np.random.default_rng(7)
    words = ["stone", "river", "lamp", "green", "north", "paper", "seven", "cloud", "glass", "road"]
    with target.open("w") as file:
        for number in range(count):
            # A token each, mostly.
            text = " ".join(words[i] for i in random.integers(0, len(words), args.prompt))
            body = {"prompt": text, "max_tokens": args.answer, "temperature": 0, "ignore_eos": True}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")


def measured(
    model: Path, memory: str, together: int | None, count: int, args: argparse.Namespace
) -> dict[str, Any]:
    """What `strata batch` says of ``count`` requests."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answers = Path(folder, "asked.jsonl"), Path(folder, "answers.jsonl")
        requests(asked, count, args)
        forget(model)
        command = [sys.executable, "-m", "strata", "batch", model, asked, answers, "--json"]
        command += ["--memory", memory, "--context", args.prompt + args.answer + 32]
        command += ["--threads", args.threads, "--draft", "off", "--quiet"]
        command += [] if together is None else ["--parallel", together]
        said = json.loads(run(command).out)
    if said["failed"] or said["lines"] != count:
        raise SystemExit(f"{said['failed']} of {count} requests failed")
    return {
        "together": said["parallel"],
        "tok_s": said["tokens_s"],
        "seconds": said["seconds"],
        "prompt_tokens": said["prompt_tokens"] / count,
        "tokens_per_sweep": said["completion_tokens"] / said["sweeps"],
        "peak_bytes": said["memory"]["peak_bytes"],
    }


def at_its_disk(
    model: Path, memory: str, points: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """The curve for a disk as much faster than the probe's as the first point was than predicted,
    and the other points beside it: how well the shape is known where the disk is not the same for
    long."""
    factor = points[0]["ratio"]
    command = [sys.executable, "-m", "strata", "probe", model, "--json"]
    known = json.loads(run(command).out)
    for rate in known["disk"]:
        rate["bytes_s"] *= factor
    with tempfile.TemporaryDirectory() as folder:
        machine = Path(folder, "machine.json")
        machine.write_text(json.dumps(known))
        curve = predicted(model, memory, args, machine)
    expected = {point["together"]: point["tok_s"] for point in curve["together"]}
    rows = [
        {
            "together": point["together"],
            "predicted_tok_s": expected[point["together"]],
            "ratio": point["tok_s"] / expected[point["together"]],
        }
        for point in points
    ]
    return {"disk_factor": factor, "points": rows}


def in_budget(
    model: Path, memory: str, before: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """A budget's curve, predicted and measured; points that are there ``before`` stay."""
    curve = predicted(model, memory, args)
    expected = {point["together"]: point["tok_s"] for point in curve["together"]}
    points = {point["together"]: point for point in before.get("points", [])}
    found: dict[str, Any] = {"memory": memory, "planned_best": curve["best"]}
    for together in args.together:
        if together in expected and together not in points:
            point = measured(model, memory, together, together, args)
            point["predicted_tok_s"] = expected[together]
            point["ratio"] = point["tok_s"] / expected[together]
            points[together] = point
            print(f"{memory} x{together}: {point['tok_s']:.2f} tok/s, {point['ratio']:.2f}x")
    found["points"] = [points[together] for together in sorted(points)]
    if not points:
        return found
    ratios = [point["ratio"] for point in points.values()]
    found["ratio_median"] = statistics.median(ratios)
    found["ratio_worst"] = max(ratios, key=lambda ratio: abs(1 - ratio))
    if curve["together"][0]["predicted"]["bound"] == "disk":
        found["at_its_disk"] = at_its_disk(model, memory, found["points"], args)
    own = before.get("own") or measured(model, memory, None, max(points), args)
    found["own"] = own
    found["of_best"] = own["tok_s"] / max(point["tok_s"] for point in points.values())
    return found


def main() -> None:
    """Measure what the command line asks for, and write after each budget what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--memory", nargs="+", required=True)
    parser.add_argument("--together", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a prompt, about")
    parser.add_argument("--answer", type=int, default=24, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=len(describe()["affinity"]))
    parser.add_argument("--folder", type=Path, help="where a synthetic model is kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="leave out what --out has already")
    args = parser.parse_args()
    for memory in args.memory:
        parse_size(memory)
    found: dict[str, Any] = {"machine": describe(), "model": Path(args.model).name, "budgets": []}
    before: dict[str, Any] = {}
    if args.resume and args.out is not None and args.out.exists():
        known = json.loads(args.out.read_text())
        if any(known["machine"][key] != found["machine"][key] for key in ("cpu", "commit")):
            raise SystemExit(f"{args.out} was measured on another machine, or by other code")
        before = {budget["memory"]: budget for budget in known["budgets"]}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(made(args.model, args.folder or Path(temporary)))
        for memory in args.memory:
            found["budgets"].append(in_budget(model, memory, before.get(memory, {}), args))
            if args.out is not None:
                args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.out is None:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
