"""What AWQ, SmoothQuant and a turned residual stream change, with GPTQ and without.

Each file is written if it is not in DIR, and all are compared with the floats by `strata quality`.

    python bench/folding.py F16.gguf --text TEXT --test TEXT --work DIR [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="for calibration")
    parser.add_argument("--test", type=Path, required=True, help="another one, to measure with")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q3_K_S", "IQ3_XXS", "Q4_K_M"])
    parser.add_argument("--chunks", type=int, default=32, help="windows to calibrate with")
    parser.add_argument("--windows", type=int, default=16, help="windows to measure with")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    strata = [sys.executable, "-m", "strata"]
    rows = []
    for type in args.types:
        for way, switches in (("gptq", []), ("no-gptq", ["--no-gptq"])):
            for fold in ("none", "awq", "smoothquant", "hadamard"):
                out = args.work / f"{type}-{way}-{fold}.gguf"
                given = [*switches, *([] if fold == "none" else ["--fold", fold])]
                if not out.exists():
                    command = ["quantize", args.model, out, "--type", type, *given, "-q"]
                    command += ["--calibration", args.text, "--chunks", args.chunks]
                    subprocess.run([*strata, *map(str, command)], check=True)
                rows.append({"type": type, "way": way, "fold": fold, "path": out})
    paths = [row.pop("path") for row in rows]
    command = ["quality", *paths, "--base", args.model, "--text", args.test]
    command += ["--chunks", args.windows, "--json", "-q"]
    said = subprocess.run([*strata, *map(str, command)], check=True, stdout=subprocess.PIPE)
    models = {m["model"]: m for m in json.loads(said.stdout)["models"]}
    for row, path in zip(rows, paths, strict=True):
        found = models[str(path)]
        row |= {"kl": found["kl"], "perplexity": found["perplexity"]}
        kl = row["kl"]
        print(
            f"{row['type']:8} {row['way']:8} {row['fold']:12} "
            f"KL {kl['value']:.5f} ({kl['low']:.5f} to {kl['high']:.5f})"
        )
    if args.json is not None:
        report = {"machine": describe(), "model": args.model.name, "results": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
