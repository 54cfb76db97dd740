"""`strata quality` beside `llama-perplexity --kl-divergence`: the same files, text and windows.

Each file is measured against the base by both programs. Reported are the rank correlation of their
figures over the files (Spearman), and how far they are apart, as a part of llama.cpp's figure and
in units of its standard error. Files come from `llama-quantize`:

`python bench/quality_against_llamacpp.py F16.gguf *.gguf --text wiki.test.txt --llama-bin DIR
--json out.json`
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe, peer_version

LINES = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([-\d.]+) ±\s*([-\d.naif]+)",
    "log_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)\s*:\s*([-\d.]+) ±\s*([-\d.naif]+)",
    "kl": r"Mean\s+KLD:\s*([-\d.]+) ±\s*([-\d.naif]+)",
    "kl_median": r"Median\s+KLD:\s*([-\d.]+)",
    "kl_p99": r"99\.0%\s+KLD:\s*([-\d.]+)",
    "kl_p99_9": r"99\.9%\s+KLD:\s*([-\d.]+)",
    "same_top": r"Same top p:\s*([-\d.]+) ±\s*([-\d.naif]+)",
    "p_change": r"Mean\s+Δp:\s*([-\d.]+) ±\s*([-\d.naif]+)",
    "p_change_rms": r"RMS Δp\s*:\s*([-\d.]+) ±\s*([-\d.naif]+)",
}
PERCENT = ("same_top", "p_change", "p_change_rms")


def theirs(tool: Path, model: Path, args: argparse.Namespace, logits: Path) -> dict[str, Any]:
    """What llama-perplexity prints of a model, fractions where it prints per cent."""
    command = [tool, "-m", model, "--kl-divergence-base", logits, "--kl-divergence"]
    command += ["-c", args.context, "-t", args.threads]
    start = time.perf_counter()
    said = run(command)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start}
    for name, pattern in LINES.items():
        match = re.search(pattern, said)
        if match is None:
            raise SystemExit(f"{tool} did not say {name} of {model}")
        scale = 0.01 if name in PERCENT else 1
        found[name] = float(match[1]) * scale
        if match.lastindex == 2:
            found[f"{name}_stderr"] = float(match[2]) * scale
    return found


def ours(models: list[Path], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Figures of all models by their path, from one run."""
    command = [sys.executable, "-m", "strata", "quality", *models, "--base", args.base, "--json"]
    command += ["--text", args.text, "-c", args.context, "--chunks", args.chunks, "-q"]
    command += ["-t", args.threads]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True)
    said = json.loads(done.stdout)
    found = {}
    for m in said["models"]:
        figures = {n: m[n]["value"] for n in ("perplexity", "log_ratio", "kl", *PERCENT)}
        figures |= {f"kl_{n}": m["kl_quantiles"][n]["value"] for n in ("median", "p99", "p99_9")}
        figures |= {"kl_low": m["kl"]["low"], "kl_high": m["kl"]["high"]}
        figures |= {"file_bytes": m["file_bytes"], "bits_per_weight": m["bits_per_weight"]}
        figures |= {"p_value": m["p_value"], "seconds": m["seconds"]}
        found[m["model"]] = figures
    return found


def run(command: list[Any]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, for values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    tool = Path(args.llama_bin) / "llama-perplexity"
    models = [Path(m) for m in args.models]
    results = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        logits = Path(scratch) / "base"
        command = [tool, "-m", args.base, "-f", args.text, "--kl-divergence-base", logits]
        run([*command, "-c", args.context, "--chunks", args.chunks, "-t", args.threads])
        peers = {m: theirs(tool, m, args, logits) for m in models}
    mine = ours(models, args)
    for m in models:
        a, b = mine[str(m)], peers[m]
        apart = {
            n: {"part": a[n] / b[n] - 1, "stderrs": (a[n] - b[n]) / b.get(f"{n}_stderr", np.nan)}
            for n in ("perplexity", "kl", "same_top", "p_change_rms")
        }
        results.append({"file": m.name, "strata": a, "llama_cpp": b, "apart": apart})
        print(
            f"{m.name:16s} PPL {a['perplexity']:9.4f} {b['perplexity']:9.4f}"
            f" | KL {a['kl']:.5f} {b['kl']:.5f} ({apart['kl']['stderrs']:+.2f} stderr)"
            f" | 99.9 % {a['kl_p99_9']:.4f} {b['kl_p99_9']:.4f}"
            f" | same top {100 * a['same_top']:.2f} {100 * b['same_top']:.2f}",
            flush=True,
        )
    correlation = {
        n: rank_correlation([mine[str(m)][n] for m in models], [peers[m][n] for m in models])
        for n in ("perplexity", "kl", "kl_p99_9", "same_top", "p_change_rms")
    }
    print("rank correlation:", {n: round(c, 4) for n, c in correlation.items()})
    return {
        "machine": describe(),
        "llama_cpp": peer_version(Path(args.llama_bin)),
        "base": Path(args.base).name,
        "text": Path(args.text).name,
        "context": args.context,
        "chunks": args.chunks,
        "threads": args.threads,
        "rank_correlation": correlation,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--llama-bin", required=True, help="the folder of llama-perplexity")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", help="where logits are written (default: the system's)")
    parser.add_argument("--json", help="write everything there")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
