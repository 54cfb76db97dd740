"""What formats that are studied lose, beside types of GGUF that are made from the same text.

Each file is written if it is not in DIR, and all are compared with the floats by `strata quality`.
Bits are those of the matrices of layers alone, which such files keep in the format.

    python bench/studied_formats.py F16.gguf --text TEXT --test TEXT --work DIR [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import describe
from strata.formats import open_model
from strata.formats.safetensors import read_header
from strata.quant.research import FORMATS


def bits_of(path: Path) -> float:
    """Bits a weight of the matrices of layers, with all that belongs to them."""
    with open_model(path) as file:
        mine = [t for n, t in file.tensors.items() if n.startswith("blk.") and len(t.shape) == 2]
        if path.suffix == ".gguf":
            nbytes = sum(t.nbytes for t in mine)
        else:
            tensors = read_header(file.files[0]).values()
            nbytes = sum(t.nbytes for t in tensors if ":" in t.name)
        return 8 * nbytes / sum(t.shape[0] * t.shape[1] for t in mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="for calibration")
    parser.add_argument("--test", type=Path, required=True, help="another one, to measure with")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--types", nargs="*", default=["Q4_0", "Q3_K_S"], help="of GGUF, beside")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("-c", "--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=32, help="windows to calibrate with")
    parser.add_argument("--windows", type=int, default=16, help="windows to measure with")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    strata = [sys.executable, "-m", "strata"]
    usual = ["-c", args.context, "--calibration", args.text, "--chunks", args.chunks, "-q"]
    rows: list[dict[str, Any]] = []
    for kind, names, ending in (
        ("type", args.types, "gguf"),
        ("format", args.formats, "safetensors"),
    ):
        for name in names:
            out = args.work / f"studied-{name}.{ending}"
            if not out.exists():
                command = ["quantize", args.model, out, f"--{kind}", name, *usual]
                # The head and the table as in the others.
                command += ["--tensor", "^token_embd|^output=F16"] if kind == "type" else []
                subprocess.run([*strata, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
            rows.append({"name": name, "kind": kind, "path": out})
    paths = [row.pop("path") for row in rows]
    command = ["quality", *paths, "--base", args.model, "--text", args.test]
    command += ["-c", args.context, "--chunks", args.windows, "--json", "-q"]
    said = subprocess.run([*strata, *map(str, command)], check=True, stdout=subprocess.PIPE)
    models = {m["model"]: m for m in json.loads(said.stdout)["models"]}
    for row, path in zip(rows, paths, strict=True):
        found = models[str(path)]
        row |= {"bits": bits_of(path), "kl": found["kl"], "perplexity": found["perplexity"]}
        kl = row["kl"]
        print(
            f"{row['name']:14} {row['bits']:.2f} bits  "
            f"KL {kl['value']:.5f} ({kl['low']:.5f} to {kl['high']:.5f})"
        )
    if args.json is not None:
        report = {"machine": describe(), "model": args.model.name, "results": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
