"""Decode and prefill in the formats that have no encoder here, against llama.cpp, in turns.

Writes a model of a published shape whose matrices are random blocks of the format (any bytes are a
block; only scales are kept ordinary), measures it as against_llamacpp.py does, and goes on with the
next. `python bench/small_formats.py --llama-bin build/bin --json bench/results/small_formats.json`.
``--layers`` takes the first layers of the shape alone. A model that lies in ``--folder`` already is
taken as it is, and left there.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from against_llamacpp import HEADER, Settings, measure, ours, row, theirs
from machine import describe, peer_version
from strata.formats import open_model
from strata.hub.references import resolve
from strata.quant import by_name
from strata.quant.block_type import Floats, Raw
from strata.quant.encode import ENCODERS
from strata.synth import find_shape, with_layers, write_model
from strata.synth.recipes import RECIPES

# name -> llama.cpp's general.file_type
FORMATS = {
    "IQ1_S": 24,
    "IQ1_M": 31,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ2_S": 28,
    "IQ3_XXS": 23,
    "IQ3_S": 26,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}
# Where a block's half-precision scale lies, if not at its beginning.
SCALE_AT = {"TQ1_0": 52, "TQ2_0": 64}


def random_blocks(name: str, values: Floats) -> Raw:
    """As many random blocks as ``values`` [blocks, elements] would take."""
    size = (len(values), by_name(name).nbytes)
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    if name == "NVFP4":
        raw[:, :4] &= 0x3F
    elif name == "IQ1_M":  # the top four bits of four words
        raw[:, 49:56:2] = raw[:, 49:56:2] & 15 | np.array([0x00, 0x00, 0x00, 0x20], np.uint8)
    else:
        at = SCALE_AT.get(name, 0)
        raw[:, at : at + 2] = np.array([0.01], "<f2").view(np.uint8)
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--layers", type=int, help="of the shape (default: all)")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--works", default="decode:32,prefill:128", help="%(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="our instruction set (default: the best here)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where models are kept (default: nowhere)")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args()
    shape = find_shape(args.shape)
    if args.layers is not None:
        shape = with_layers(shape, args.layers)
    settings = Settings(args.threads, args.repeat, args.isa, args.llama_bin)
    report: dict[str, Any] = {
        "machine": describe(),
        "llama_cpp": peer_version(args.llama_bin),
        "shape": args.shape,
        "layers": shape.layers,
        "threads": args.threads,
        "isa": args.isa,
        "results": [],
    }
    with open_model(resolve("smollm2")) as source:
        tokenizer = dict(source.metadata)
    print("  ".join(HEADER))
    for name in args.formats.split(","):
        RECIPES[name] = (name, FORMATS[name])
        ENCODERS.setdefault(name, functools.partial(random_blocks, name))
        with tempfile.TemporaryDirectory() as folder:
            model = (args.folder or Path(folder)) / f"{args.shape}-{shape.layers}-{name}.gguf"
            if not model.exists():
                write_model(shape, model, recipe=name, tokenizer=tokenizer)
            for work in filter(None, args.works.split(",")):
                sides = {"strata": ours, "llama_cpp": theirs}
                result = measure(str(model), work, settings, args.pairs, sides)
                report["results"].append(result)
                print("  ".join(row(result)), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
