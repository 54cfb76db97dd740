"""Models larger than their memory: speed, peak and share of the disk, in a control group of exactly
the budget, with llama.cpp's mmap in the same group where its llama-bench is given.

Prints one JSON object. `python bench/streaming.py model.gguf --memory 512MB --gen 16 --prompt 128
[--llama-bench PATH] [--rounds 3]`. Rounds of all contestants alternate, and each is preceded by a
measurement of the disk (direct reads of the model itself), because both change with what else the
machine does. The page cache of the model is dropped before every run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from cgroups import group, why_not
from strata.plan.probe_disk import probe_disk
from strata.sizes import parse_size

Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def forget(model: Path) -> None:
    """Drop a model's page cache."""
    with model.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes_s(model: Path) -> float:
    """The best rate of direct reads just now."""
    rates, _ = probe_disk(model, 2.0)
    return max(rate.bytes_s for rate in rates if rate.mode == "direct")


def strata(model: Path, args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """One run of `strata bench` with a budget."""
    command = [sys.executable, "-m", "strata", "bench", str(model), "--json", "--repeat", "1"]
    command += ["--prompt", str(args.prompt), "--gen", str(args.gen), "--explain"]
    command += ["--threads", str(args.threads), "--memory", f"{parse_size(args.memory)}B"]
    done = run(command)
    report: dict[str, Any] = json.loads(done.stdout or '{"error": {"message": "killed"}}')
    if "error" in report:
        return {"error": report["error"]["message"], "return_code": done.returncode}
    explanation = report["explanation"]
    return {
        "prefill_tok_s": report["prefill_tok_s"],
        "decode_tok_s": report["decode_tok_s"],
        "peak_bytes": report["memory"]["peak_bytes"],
        "predicted_peak_bytes": explanation["predicted_peak_bytes"],
        "sweep_bytes": explanation["sweep_bytes"],
        "decode": explanation["decode"],
        "prefill": explanation["prefill"],
        "verdict": explanation["verdict"],
    }


def llama(model: Path, args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """One run of llama.cpp's llama-bench, which maps the file into memory."""
    command = [args.llama_bench, "-m", str(model), "-t", str(args.threads), "-r", "1", "-o", "json"]
    done = run([*command, "-p", str(args.prompt), "-n", str(args.gen), "-lm", "mmap"])
    if done.returncode != 0:
        return {"error": done.stderr[-300:], "return_code": done.returncode}
    rates = {bool(row["n_gen"]): row["avg_ts"] for row in json.loads(done.stdout)}
    return {"prefill_tok_s": rates.get(False), "decode_tok_s": rates.get(True)}


def measure(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds in which every contestant has its turn."""
    contestants = {"strata": strata} | ({"llama.cpp": llama} if args.llama_bench else {})
    rounds = []
    for _ in range(args.rounds):
        for name, contestant in contestants.items():
            forget(model)
            disk = disk_bytes_s(model)
            forget(model)
            with group(parse_size(args.memory)) as made:
                result = contestant(model, args, lambda command: made.run(command, args.timeout))
                peak = made.peak
            rounds.append({"name": name, "disk_bytes_s": disk, "group_peak_bytes": peak, **result})
    return rounds


def medians(rounds: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Median speeds of a contestant."""
    found = {}
    for key in ("prefill_tok_s", "decode_tok_s"):
        values = [r[key] for r in rounds if r["name"] == name and r.get(key)]
        if values:
            found[key] = statistics.median(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="512MB")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--gen", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--llama-bench")
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    rounds = measure(args.model, args)
    result = {
        "model": args.model.name,
        "model_bytes": args.model.stat().st_size,
        "memory": parse_size(args.memory),
        "prompt": args.prompt,
        "gen": args.gen,
        "threads": args.threads,
        "medians": {name: medians(rounds, name) for name in {r["name"] for r in rounds}},
        "rounds": rounds,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
