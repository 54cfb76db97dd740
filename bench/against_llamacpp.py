"""Strata beside llama.cpp: the same file, the same threads, one after the other in turns.

Every pair runs both programs, the first one first in even pairs and last in odd ones, with plain
reads of memory between them; ratios are formed pair by pair, so that a change of the machine's pace
changes both sides. Printed: medians, the ratio's median with its least and greatest, and the share
of read bandwidth (weights and KV that a token must read, over the bandwidth of the same pair).
Times (``cold``, a whole process up to one token, the file in the page cache) and peak memory are
ratios of llama.cpp's to ours where less is better, so that above 1 is always in our favour.

`taskset -c 0,1 python bench/against_llamacpp.py MODEL.gguf ... --llama-bin DIR --json out.json`
DIR holds llama-bench, llama-batched-bench and llama-completion. ``--isa avx2`` is our side; give
the DIR of a llama.cpp that was built for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe, peer_version

HERE = Path(__file__).parent
WORKS = (
    *("decode:64", "prefill:128", "prefill:512", "depth:4096:16"),
    *("batch:4:32", "batch:16:32", "cold"),
)
PROMPT = "The capital of France is"
CONTEXT = 4096
BATCH_PROMPT = 16


@dataclass(frozen=True)
class Run:
    """What one process said, the seconds it took and the most memory it held."""

    out: str
    seconds: float
    peak_bytes: int


def run(command: Sequence[object], isa: str | None = None) -> Run:
    """Run a process to its end; SystemExit with its last words if it fails."""
    words = [str(part) for part in command]
    environment = dict(os.environ) if isa is None else {**os.environ, "STRATA_ISA": isa}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            said = err.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(words)} ended with {child.returncode}: {said}")
        # Kilobytes on Linux.
        return Run(out.read().decode(errors="replace"), seconds, usage.ru_maxrss * 1024)


@dataclass(frozen=True)
class Settings:
    threads: int
    repeat: int
    isa: str | None
    tools: Path


def ours(model: str, work: str, s: Settings) -> dict[str, Any]:
    """Our side: ``value`` in tokens a second (seconds for cold), ``peak_bytes`` and more."""
    if work == "cold":
        command = [sys.executable, "-m", "strata", "run", model, PROMPT, "--raw", "--json"]
        options = ["--max-tokens", 1, "--threads", s.threads, "-c", CONTEXT]
        done = run([*command, *options], s.isa)
        return {"value": done.seconds, "peak_bytes": done.peak_bytes, **json.loads(done.out)}
    command = [sys.executable, HERE / "our_side.py", model, work]
    done = run([*command, "--threads", s.threads, "--repeat", s.repeat], s.isa)
    said = json.loads(done.out)
    return {**said, "value": statistics.median(said["samples"]), "peak_bytes": done.peak_bytes}


def theirs(model: str, work: str, s: Settings) -> dict[str, Any]:
    """The same of llama.cpp."""
    kind, *numbers = work.split(":")
    base: list[object] = ["-m", model, "-t", s.threads]
    if kind == "cold":
        tool = [s.tools / "llama-completion", *base, "-c", CONTEXT, "-n", 1, "--no-warmup"]
        done = run([*tool, "-no-cnv", "-p", PROMPT])
        return {"value": done.seconds, "peak_bytes": done.peak_bytes, "text": done.out}
    if kind == "batch":
        sequences, gen = (int(n) for n in numbers)
        positions = sequences * (BATCH_PROMPT + gen + 2)
        tool = [s.tools / "llama-batched-bench", *base, "-c", positions, "-npp", BATCH_PROMPT]
        tool += ["-ntg", gen, "-npl", ",".join([str(sequences)] * s.repeat)]
        done = run([*tool, "--output-format", "jsonl"])
        samples = batched_samples(done.out)
    else:
        prompt, gen, depth = {
            "prefill": (numbers[0], 0, 0),
            "decode": (0, numbers[-1], 0),
            "depth": (0, numbers[-1], numbers[0]),
        }[kind]
        tool = [s.tools / "llama-bench", *base, "-p", prompt, "-n", gen, "-d", depth]
        done = run([*tool, "-r", s.repeat, "-o", "json"])
        samples = bench_samples(done.out)
    value = statistics.median(samples)
    return {"value": value, "samples": samples, "peak_bytes": done.peak_bytes}


def bench_samples(out: str) -> list[float]:
    """Tokens a second of each repetition, from llama-bench's JSON."""
    (test,) = json.loads(out)
    return [float(x) for x in test["samples_ts"]]


def batched_samples(out: str) -> list[float]:
    """Tokens a second of all sequences together, from llama-batched-bench's JSON lines."""
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [float(row["speed_tg"]) for row in rows]


def summary(pairs: Sequence[dict[str, Any]], work: str) -> dict[str, Any]:
    """Medians, and ratios in our favour with their spread."""
    less_is_better = work == "cold"

    def medians(key: str) -> tuple[float, float]:
        sides = ([p[side][key] for p in pairs] for side in ("strata", "llama_cpp"))
        first, second = (statistics.median(side) for side in sides)
        return first, second

    value = medians("value")
    ratios = [p["strata"]["value"] / p["llama_cpp"]["value"] for p in pairs]
    if less_is_better:
        ratios = [1 / r for r in ratios]
    peak = medians("peak_bytes")
    found: dict[str, Any] = {
        "strata": value[0],
        "llama_cpp": value[1],
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "read_gb_s": statistics.median(p["read_bytes_s"] for p in pairs) / 1e9,
        "peak_bytes": {"strata": peak[0], "llama_cpp": peak[1], "ratio": peak[1] / peak[0]},
    }
    if not work.startswith(("prefill", "cold")):
        for side in ("strata", "llama_cpp"):
            shares = [p[side]["value"] * p["strata"]["bytes"] / p["read_bytes_s"] for p in pairs]
            found[f"{side}_share"] = statistics.median(shares)
    return found


def measure(
    model: str,
    work: str,
    s: Settings,
    pairs: int,
    sides: dict[str, Callable[[str, str, Settings], dict[str, Any]]],
) -> dict[str, Any]:
    """Pairs of one work on one file, and their summary."""
    found = []
    for i in range(pairs):
        pair: dict[str, Any] = {"load": os.getloadavg()[0]}
        order = list(sides) if i % 2 == 0 else list(sides)[::-1]
        reads = []
        for name in order:
            read = run(
                [sys.executable, HERE / "our_side.py", model, "read", "--threads", s.threads], s.isa
            )
            reads.append(json.loads(read.out)["bytes_s"])
            pair[name] = sides[name](model, work, s)
        # What slows a read down only hides what the machine can do.
        pair["read_bytes_s"] = max(reads)
        found.append(pair)
    size = os.path.getsize(model)
    result = {"model": Path(model).name, "file_bytes": size, "work": work}
    return {**result, **summary(found, work), "pairs": found}


def row(result: dict[str, Any]) -> tuple[str, ...]:
    unit = "s" if result["work"] == "cold" else "tok/s"
    share = "-"
    if "strata_share" in result:
        share = f"{100 * result['strata_share']:.0f} / {100 * result['llama_cpp_share']:.0f} %"
    peak = result["peak_bytes"]
    return (
        result["model"][:32],
        result["work"],
        f"{result['strata']:.2f} {unit}",
        f"{result['llama_cpp']:.2f} {unit}",
        f"{result['ratio']:.2f} ({result['ratio_least']:.2f}-{result['ratio_most']:.2f})",
        share,
        f"{peak['strata'] / 1e6:.0f} / {peak['llama_cpp'] / 1e6:.0f} MB",
    )


HEADER = ("MODEL", "WORK", "STRATA", "LLAMA.CPP", "RATIO", "BANDWIDTH", "PEAK")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--works", default=",".join(WORKS), help="%(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="our instruction set (default: the best here)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions within a process")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    settings = Settings(args.threads, args.repeat, args.isa, args.llama_bin)
    report: dict[str, Any] = {
        "machine": describe(),
        "llama_cpp": peer_version(args.llama_bin),
        "threads": args.threads,
        "isa": args.isa,
        "results": [],
    }
    widths = (32, 14, 14, 14, 18, 11, 0)
    print("  ".join(cell.ljust(w) for cell, w in zip(HEADER, widths, strict=True)))
    for model in args.models:
        for work in args.works.split(","):
            sides = {"strata": ours, "llama_cpp": theirs}
            result = measure(model, work, settings, args.pairs, sides)
            report["results"].append(result)
            cells = zip(row(result), widths, strict=True)
            print("  ".join(cell.ljust(w) for cell, w in cells).rstrip(), flush=True)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
