"""Mixtures, hybrids and state-space models beside llama.cpp: decoding and prompts, in turns.

Random weights of published shapes with the first of their layers only, so that a file stays under
3.1 GB; what is measured and how is as in bench/against_llamacpp.py. Of a mixture, the share of read
bandwidth counts the experts that a token chooses.

`taskset -c 0,1 python bench/families_against_llamacpp.py --llama-bin DIR --files FOLDER [NAME ...]`
FOLDER keeps what is written there for the next run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from against_llamacpp import HEADER, Settings, measure, ours, row, theirs
from machine import describe, peer_version
from strata.formats import open_model
from strata.hub.references import resolve
from strata.synth import find_shape, with_layers, write_model

# Shape, quantisation, layers of it: a quarter, or what shows each kind of layer.
FAMILIES = (
    ("qwen3-30b-a3b", "Q4_K_M", 6),
    ("gpt-oss-20b", "MXFP4", 6),
    ("qwen3.6-35b-a3b", "Q4_K_M", 4),
    ("granite-4-h-tiny", "Q4_K_M", 10),
    ("lfm2-8b-a1b", "Q4_K_M", 8),
    ("mamba2-2.7b", "Q4_K_M", 32),
)
WIDTHS = (32, 14, 14, 14, 18, 11, 0)


def written(name: str, recipe: str, layers: int, folder: Path) -> Path:
    """The file of a shape, written if it is not there."""
    path = folder / f"{name}-{recipe}-{layers}.gguf"
    if not path.exists():
        with open_model(resolve("smollm2")) as source:
            tokenizer = dict(source.metadata)
        shape = with_layers(find_shape(name), layers)
        write_model(shape, path, recipe=recipe, tokenizer=tokenizer)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="shapes (default: all)")
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--works", default="decode:64,prefill:512", help="%(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions within a process")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    settings = Settings(args.threads, args.repeat, None, args.llama_bin)
    report: dict[str, Any] = {
        "machine": describe(),
        "llama_cpp": peer_version(args.llama_bin),
        "threads": args.threads,
        "results": [],
    }
    print("  ".join(cell.ljust(w) for cell, w in zip(HEADER, WIDTHS, strict=True)))
    sides = {"strata": ours, "llama_cpp": theirs}
    for name, recipe, layers in FAMILIES:
        if args.names and name not in args.names:
            continue
        path = str(written(name, recipe, layers, args.files))
        for work in args.works.split(","):
            result = measure(path, work, settings, args.pairs, sides)
            report["results"].append({**result, "layers": layers})
            cells = zip(row(result), WIDTHS, strict=True)
            print("  ".join(cell.ljust(w) for cell, w in cells).rstrip(), flush=True)
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
