"""How long `strata quantize` takes, a case each run, beside llama-quantize where it does the same.

Models are of published shapes with random weights, which take as long as others (`strata synth`);
a shape may have some of its layers alone, which the figures then say. With `--tools` both programs
run in turns, first and second changing places, on the same file, which is not in memory when they
begin, and threads. With `--imatrix` the importance matrix is made first, and its time told.

    python bench/quantise_speed.py NAME MODEL --work DIR [--tools DIR] [--text TEXT] -- OPTIONS
    python bench/quantise_speed.py "8B, 8 layers" 8b.gguf --work DIR --tools DIR -- --type Q4_K_M
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

from machine import command, describe, peer_version

RESULTS = Path(__file__).parent / "results" / "quantise_speed.json"


def timed(*words: object) -> float:
    """Seconds of a command; its last lines if it fails."""
    started = time.perf_counter()
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return time.perf_counter() - started


def dropped(path: Path) -> None:
    """Have the system forget a file's pages: both programs begin with the disk."""
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def copying(source: Path, out: Path, nbytes: int) -> float:
    """Seconds in which the source is read and so many bytes are written, with nothing computed."""
    dropped(source)
    started = time.perf_counter()
    with source.open("rb") as file, out.open("wb") as to:
        left = nbytes
        while part := file.read(8 << 20):
            to.write(part[:left])
            left = max(0, left - len(part))
        to.flush()
        os.fdatasync(to.fileno())
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what the row is called")
    parser.add_argument("model", type=Path)
    parser.add_argument("options", nargs="+", help="of strata quantize")
    parser.add_argument("--work", type=Path, required=True, help="a folder for files")
    parser.add_argument("--tools", type=Path, help="llama.cpp's programs, for the same --type")
    parser.add_argument("--text", type=Path, help="for an importance matrix, or --calibration")
    parser.add_argument("--imatrix", action="store_true", help="make one of the text first")
    parser.add_argument("--chunks", type=int, default=32, help="windows of 512 tokens for it")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--how", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    strata = [sys.executable, "-m", "strata"]
    mine, theirs = args.work / "strata.gguf", args.work / "llama.gguf"
    quantise = ["quantize", args.model, mine, *args.options, "-t", args.threads, "-q", "--force"]
    row: dict[str, Any] = {
        "name": args.name,
        "model": args.model.name,
        "source_bytes": args.model.stat().st_size,
        "threads": args.threads,
        "machine": describe(),
        "how": args.how,
    }
    if args.imatrix:
        made = args.work / "imatrix.gguf"
        made.unlink(missing_ok=True)
        row["imatrix_seconds"] = timed(
            *(*strata, "imatrix", args.model, "--text", args.text, "-o", made, "-q"),
            *("-t", args.threads, "--chunks", args.chunks),
        )
        row["windows"] = args.chunks
        quantise += ["--imatrix", made]
    elif args.text:
        quantise += ["--calibration", args.text]
    times: dict[str, list[float]] = {"strata": []}

    def ours() -> None:
        times["strata"].append(timed(*strata, *quantise))

    def llama() -> None:
        type = args.options[args.options.index("--type") + 1]
        tool = args.tools / "llama-quantize"
        times.setdefault("llama.cpp", []).append(
            timed(tool, args.model, theirs, type, args.threads)
        )
        theirs.unlink()

    for pair in range(args.pairs):
        both = [ours, llama] if args.tools else [ours]
        for one in both if pair % 2 == 0 else reversed(both):
            dropped(args.model)
            one()
    row["file_bytes"] = mine.stat().st_size
    if args.tools:
        row["llama_cpp"] = peer_version(args.tools)
        ratios = [b / a for a, b in zip(times["strata"], times["llama.cpp"], strict=True)]
        row["times_as_fast"] = {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
        }
        row["copying_seconds"] = copying(args.model, mine, row["file_bytes"])
    row["command"] = "strata " + command([str(w) for w in quantise])
    row["seconds"] = times
    mine.unlink()
    kept = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    kept["rows"] = [r for r in kept["rows"] if r["name"] != args.name] + [row]
    args.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k != "machine"}))


if __name__ == "__main__":
    main()
