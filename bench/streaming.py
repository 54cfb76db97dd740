"""Models larger than their memory: speed, peak and share of the disk, in a control group of exactly
the budget, beside llama.cpp's mmap and AirLLM in groups of the same size.

`python bench/streaming.py MODEL --memory 512MB [--also FILE] [--llama-bench PATH]
[--airllm PYTHON --weights DIRECTORY --shards FOLDER] [--rounds 3] [--json]`

MODEL is a GGUF file or a directory; `--also` is another file of the same model, for Strata alone
(a smaller quantisation). AirLLM reads `--weights` with the Python that it is installed in, and has
its own copy of them in `--shards` (see airllm_side.py). Rounds of all contestants alternate, and
each is preceded by a measurement of the disk (direct reads of the model itself), because both
change with what else the machine does. The page cache of the weights is dropped before every run.
Ratios are those of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from cgroups import group, why_not
from machine import describe
from strata.machine.probe_disk import probe_disk
from strata.sizes import parse_size

Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]
Contestant = Callable[[argparse.Namespace, Run], dict[str, Any]]
SPEEDS = ("decode_tok_s", "prefill_tok_s")


def files_of(path: Path) -> Iterator[Path]:
    """The files with a model's weights."""
    if path.is_file():
        yield path
    else:
        yield from path.rglob("*.safetensors")


def forget(*paths: Path | None) -> None:
    """Drop what the page cache has of these models."""
    for path in paths:
        for name in files_of(path) if path else ():
            with name.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes_s(model: Path) -> float:
    """The best rate of direct reads just now."""
    largest = max(files_of(model), key=lambda file: file.stat().st_size)
    rates, _ = probe_disk(largest, 2.0)
    return max(rate.bytes_s for rate in rates if rate.mode == "direct")


def strata(model: Path) -> Contestant:
    """`strata bench` with a budget."""

    def run_once(args: argparse.Namespace, run: Run) -> dict[str, Any]:
        command = [sys.executable, "-m", "strata", "bench", str(model), "--json", "--repeat", "1"]
        command += ["--prompt", str(args.prompt), "--gen", str(args.gen), "--explain"]
        command += ["--threads", str(args.threads), "--memory", f"{parse_size(args.memory)}B"]
        done = run(command)
        report: dict[str, Any] = json.loads(done.stdout or '{"error": {"message": "killed"}}')
        if "error" in report:
            return {"error": report["error"]["message"], "return_code": done.returncode}
        explained = report["explanation"]
        kept = ("predicted_peak_bytes", "sweep_bytes", "decode", "prefill", "owned", "verdict")
        return {
            **{speed: report[speed] for speed in SPEEDS},
            "peak_bytes": report["memory"]["peak_bytes"],
            **{name: explained[name] for name in kept},
        }

    return run_once


def llama(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """llama.cpp's llama-bench, which maps the file into memory."""
    command = [args.llama_bench, "-m", str(args.model), "-t", str(args.threads), "-r", "1"]
    command += ["-p", str(args.prompt), "-n", str(args.gen), "-lm", "mmap", "-o", "json"]
    done = run(command)
    if done.returncode != 0:
        return {"error": done.stderr[-300:], "return_code": done.returncode}
    rates = {bool(row["n_gen"]): row["avg_ts"] for row in json.loads(done.stdout)}
    return {"prefill_tok_s": rates.get(False), "decode_tok_s": rates.get(True)}


def airllm(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """AirLLM, which loads a layer at a time."""
    side = Path(__file__).with_name("airllm_side.py")
    command = [args.airllm, str(side), str(args.weights), "--shards", str(args.shards)]
    command += ["--prompt", str(args.prompt), "--threads", str(args.threads)]
    done = run([*command, "--gen", str(min(args.gen, 4))])
    if done.returncode != 0:
        return {"error": done.stderr[-300:] or "killed", "return_code": done.returncode}
    report = json.loads(done.stdout)
    return {
        "prefill_tok_s": args.prompt / report["first_s"][0],
        "decode_tok_s": 1 / statistics.median(report["token_s"]),
        "peak_bytes": report["peak_bytes"],
    }


def contestants(args: argparse.Namespace) -> dict[str, Contestant]:
    found = {"strata": strata(args.model)}
    if args.also:
        found[f"strata {args.also.name}"] = strata(args.also)
    if args.llama_bench:
        found["llama.cpp"] = llama
    if args.airllm:
        found["airllm"] = airllm
    return found


def measure(args: argparse.Namespace) -> list[dict[str, dict[str, Any]]]:
    """Rounds in which every contestant has its turn: what each did."""
    rounds = []
    weights = (args.model, args.also, args.weights, args.shards)
    for _ in range(args.rounds):
        rounds.append({})
        for name, contestant in contestants(args).items():
            forget(*weights)
            disk = disk_bytes_s(args.model)
            forget(*weights)
            with group(parse_size(args.memory)) as made:
                result = contestant(args, lambda command: made.run(command, args.timeout))
                peak = made.peak
            rounds[-1][name] = {"disk_bytes_s": disk, "group_peak_bytes": peak, **result}
            print(f"{name}: {said(rounds[-1][name])}", file=sys.stderr)
    return rounds


def said(result: dict[str, Any]) -> str:
    """One line of what a contestant did."""
    if "error" in result:
        return f"failed: {result['error']}"
    line = f"decode {result['decode_tok_s']:.3g} tok/s, prefill {result['prefill_tok_s']:.4g} tok/s"
    line += f", group's peak {result['group_peak_bytes'] / 1e6:.0f} MB"
    if decode := result.get("decode"):
        share = decode["disk_bytes_s"] / result["disk_bytes_s"]
        line += f", {decode['disk_bytes_s'] / 1e9:.2f} GB/s, {share:.0%} of the disk just before"
    return line


def middle(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians of each contestant, and Strata's ratios to it within the rounds."""
    found: dict[str, dict[str, Any]] = {}
    ours = [name for name in rounds[0] if name.startswith("strata")]
    for name in rounds[0]:
        done = [r for r in rounds if "error" not in r[name]]
        if not done:
            found[name] = {"error": rounds[-1][name]["error"]}
            continue
        row: dict[str, Any] = {s: middle([r[name][s] for r in done]) for s in SPEEDS}
        if name in ours:
            shares = [r[name]["decode"]["disk_bytes_s"] / r[name]["disk_bytes_s"] for r in done]
            row["disk_share"] = middle(shares)
            peaks = [r[name]["peak_bytes"] for r in done]
            row["peak_bytes"] = max(peaks)
            row["verdict"] = done[-1][name]["verdict"]
        else:
            for our in ours:
                pairs = [r for r in done if "error" not in r[our]]
                row[f"{our}, times"] = {
                    s: middle([r[our][s] / r[name][s] for r in pairs]) for s in SPEEDS if pairs
                }
        found[name] = row
    return found


def show(result: dict[str, Any]) -> None:
    """The summary for people."""

    def spread(v: dict[str, float]) -> str:
        return f"{v['median']:.3g} ({v['least']:.3g}-{v['most']:.3g})"

    for name, row in result["summary"].items():
        print(name)
        for key, value in row.items():
            if key in ("error", "verdict"):
                print(f"  {key}: {value}")
            elif key == "peak_bytes":
                print(f"  peak {value / 1e6:.0f} MB")
            elif "median" in value:
                print(f"  {key} {spread(value)}")
            else:
                print(f"  {key}: " + ", ".join(f"{s} {spread(v)}" for s, v in value.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--also", type=Path)
    parser.add_argument("--llama-bench")
    parser.add_argument("--airllm", metavar="PYTHON")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    if args.airllm and not (args.weights and args.shards):
        parser.error("--airllm goes with --weights and --shards")
    rounds = measure(args)
    result = {
        "machine": describe(),
        "model": args.model.name,
        "model_bytes": sum(file.stat().st_size for file in files_of(args.model)),
        "memory": parse_size(args.memory),
        "prompt": args.prompt,
        "gen": args.gen,
        "threads": args.threads,
        "summary": summary(rounds),
        "rounds": rounds,
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
