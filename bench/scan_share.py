"""How much of a prompt's time recurrences take that go through their rows one by one.

    taskset -c 0,1 python bench/scan_share.py --files FOLDER [--json out.json] [SHAPE ...]

Random weights of published shapes with the first of their layers only; `strata bench --ops` gives
the time of each kind of Op of a prefill of 512 tokens. FOLDER keeps what is written there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from families_against_llamacpp import written
from machine import describe
from strata.program.ops.scans import SCANS

# Shape, quantisation, layers of it.
SHAPES = (
    ("qwen3.5-0.8b", "Q4_K_M", 8),
    ("qwen3.6-35b-a3b", "Q4_K_M", 4),
    ("granite-4-h-tiny", "Q4_K_M", 10),
    ("mamba2-2.7b", "Q4_K_M", 16),
    ("rwkv7-1.5b", "Q4_K_M", 8),
)
ROWS = 512


def share(path: Path) -> dict[str, Any]:
    """Of a file's prompt: seconds, and the share of them that recurrences take."""
    command = [sys.executable, "-m", "strata", "bench", str(path), "--json", "--ops"]
    command += ["--prompt", str(ROWS), "--gen", "0", "--repeat", "1", "--threads", "2"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    step = json.loads(done.stdout)["ops"]["prefill"]
    scans = {op["name"]: op["share_of_step"] for op in step["ops"] if op["name"] in SCANS}
    return {"step_s": step["step_s"], "tokens": step["tokens"], "scans": scans}


def main() -> None:
    """Measure, print a line a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="shapes (default: all)")
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.files.mkdir(parents=True, exist_ok=True)
    chosen = [s for s in SHAPES if not args.names or s[0] in args.names]
    report: dict[str, Any] = {"machine": describe(), "rows": ROWS, "shapes": {}}
    for name, recipe, layers in chosen:
        found = share(written(name, recipe, layers, args.files))
        report["shapes"][name] = {"recipe": recipe, "layers": layers, **found}
        print(f"{name:20} {found['step_s']:.3f} s", found["scans"], flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
