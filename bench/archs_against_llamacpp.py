"""Every architecture of llama.cpp beside llama.cpp: logits of the tiny models that its generator
writes, from the reference backend and from the native one.

`python bench/archs_against_llamacpp.py --llama-cpp SOURCE BUILD [--json out.json] [NAME ...]`
BUILD holds bin/test-llama-archs and the libraries; a small program is compiled against them
(tools/llamacpp_logits.cpp). ``--files DIR`` takes files that are there already. For each file the
normalised mean squared error of the reference against llama.cpp, the greatest difference of the
native backend from the reference over the greatest logit, or the error that says what is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tools")]

from make_tiny_variants import compile_program, logits_of_llama_cpp  # noqa: E402
from strata.backends.cpu.backend import CpuBackend  # noqa: E402
from strata.backends.kv_types import F16  # noqa: E402
from strata.backends.reference import ReferenceBackend  # noqa: E402
from strata.errors import StrataError  # noqa: E402
from strata.formats import open_model  # noqa: E402
from support.forward import Forward  # noqa: E402

TOKENS = 40
LIMIT = 1e-6


def compare(program: Path, path: Path) -> dict[str, Any]:
    """One file's figures, or its error."""
    try:
        want = logits_of_llama_cpp(program, path, TOKENS).astype(np.float64)
    except subprocess.CalledProcessError as error:
        return {"error": f"llama.cpp: {error.stderr.strip().splitlines()[-1:]}"}
    tokens = [(7 + 13 * i) % want.shape[1] for i in range(TOKENS)]
    try:
        with open_model(path) as file:
            exact = Forward(file).logits(tokens)
            rounded = Forward(file, backend=ReferenceBackend(kv_type=F16)).logits(tokens)
            native = Forward(file, backend=CpuBackend(threads=1)).logits(tokens)
    except StrataError as error:
        return {"error": f"{type(error).__name__}: {error}".split(";")[0]}
    return {
        "nmse": float(np.square(exact - want).sum() / np.square(want).sum()),
        "native_off": float(np.abs(native - rounded).max() / np.abs(exact).max()),
        "kv_f16_off": float(np.abs(rounded - exact).max() / np.abs(exact).max()),
    }


def main() -> None:
    """Write the files where they are not there, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="file names without .gguf; default: all")
    parser.add_argument("--llama-cpp", nargs=2, type=Path, required=True)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.files or Path(scratch)
        build = options.llama_cpp[1]
        if options.files is None:
            generator = build / "bin" / "test-llama-archs"
            words = [generator, "-o", folder, "-s", str(options.seed)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        program = compile_program(*options.llama_cpp, Path(scratch))
        found: dict[str, Any] = {}
        for path in sorted(folder.glob("*.gguf")):
            if options.names and path.stem not in options.names:
                continue
            found[path.stem] = figures = compare(program, path)
            nmse, off = figures.get("nmse"), figures.get("native_off")
            shown = figures["error"] if nmse is None else f"{nmse:.1e}  {off:.1e}"
            print(f"{path.stem:28} {shown}", flush=True)
    same = sum(figures.get("nmse", 1.0) < LIMIT for figures in found.values())
    print(f"{same} of {len(found)} files give llama.cpp's logits")
    if options.json:
        report = {"machine": describe(), "seed": options.seed, "same": same, "files": found}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
