"""What the instructions of the integer kernels allow, a format at a time, on one thread.

`python bench/kernel_limits.py --object BUILD/.../csrc/isa/avx512.cpp.o --json FILE`: decode of
weights that fit the second-level cache, prompts of 128 rows beside the peak of the multipliers, and
reading memory, the best of many turns by processor time. Of the object file: the innermost loop of
a single row, whose every eight dot products are 32 elements of 16 rows of weights. Codes of IQ1,
IQ2_S and TQ1_0 are made in a loop before it.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from machine import Bandwidth, describe
from matmul_kernels import Weights
from small_formats import FORMATS, random_blocks
from strata import _native
from strata.backends.cpu.reading import native_id
from strata.quant import by_name
from strata.quant.encode import ENCODERS
from strata.quant.grids import grid

K, ROWS = 2048, 128
BYTES = 512 << 10
BOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
KINDS = {"multiply": r"vpdpbusd|vmulps|vfmadd\w+", "permute": r"vperm\w+|vpshufb|vpmultishiftqb"}


def seconds(work: Callable[[], object], turns: int) -> float:
    best = float("inf")
    for _ in range(turns):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return best


def product(w: Weights, isa: str, rows: int, times: int) -> Callable[[], None]:
    acts = w.acts(isa, rows)
    out = np.empty((rows, w.n), np.float32)

    def work() -> None:
        for _ in range(times):
            _native.matmul(isa, w.format, w.matrices[0], w.n, w.k, acts, out)

    return work


def dots(code: list[tuple[int, str, str]]) -> int:
    return sum(name == "vpdpbusd" for _, name, _ in code)


def innermost(text: str, format_id: int) -> dict[str, int] | None:
    """Instructions of the smallest loop with eight dot products or more, by kind."""
    start = re.search(rf"^\w+ <.*\btile<\(strata::Format\){format_id}, 1, 1>\(.*>:$", text, re.M)
    if start is None:
        return None
    lines = text[start.end() :].split("\n\n")[0].strip().splitlines()
    found = [re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line) for line in lines]
    code = [(int(m[1], 16), m[2], m[3]) for m in found if m]
    places = {address: i for i, (address, _, _) in enumerate(code)}
    loops = []
    for i, (address, name, to) in enumerate(code):
        target = re.match(r"([0-9a-f]+) <", to)
        if name[0] == "j" and target and int(target[1], 16) <= address:
            first = places.get(int(target[1], 16))
            if first is not None:
                loops.append(code[first : i + 1])
    loops = [x for x in loops if dots(x) >= 8]
    if not loops:
        return None
    body = min(loops, key=len)
    kinds = Counter(k for _, name, _ in body for k, p in KINDS.items() if re.fullmatch(p, name))
    memory = sum("(" in to for _, _, to in body)
    return {"dots": dots(body), "instructions": len(body), "with_memory": memory, **kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=_native.available_isas()[0])
    parser.add_argument("--formats", default="Q4_0,Q8_0,Q4_K,IQ4_XS,MXFP4," + ",".join(FORMATS))
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--object", type=Path, help="to count instructions in")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for name in FORMATS:
        ENCODERS.setdefault(name, functools.partial(random_blocks, name))
    for name in BOOKS:
        _native.set_grid(native_id(by_name(name)), grid(name).view(np.uint8).reshape(-1))
    text = ""
    if args.object:
        command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(args.object)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rounds = 30000
    peak = _native.multiply_peak(args.isa, "int8", rounds) / seconds(
        lambda: _native.multiply_peak(args.isa, "int8", rounds), args.turns
    )
    read = Bandwidth(args.isa, 1)
    report: dict[str, Any] = {
        "machine": describe(),
        "isa": args.isa,
        "peak_gops": round(peak / 1e9),
        "read_gb_s": round(max(read.measure() for _ in range(5)) / 1e9, 1),
        "results": [],
    }
    for name in args.formats.split(","):
        kind = by_name(name)
        n = BYTES * kind.elements // (K * kind.nbytes) // 16 * 16
        w = Weights(name, K, n, 0)
        one = seconds(product(w, args.isa, 1, 20), args.turns) / 20
        many = seconds(product(w, args.isa, ROWS, 1), args.turns)
        row = {
            "format": name,
            "bits": round(w.nbytes * 8 / (n * K), 2),
            "decode_cached_gb_s": round(w.nbytes / one / 1e9, 1),
            f"gops_{ROWS}": round(2 * ROWS * n * K / many / 1e9),
            "loop": innermost(text, w.format),
        }
        report["results"].append(row)
        print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
