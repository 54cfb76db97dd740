"""Speed of the matrix kernels alone: decode against read bandwidth, prefill in operations a second.

Prints one JSON object. Decode rows read weights that do not fit in the caches, shaped like a model
of a billion parameters; the bandwidth beside them is a plain read loop over the same bytes, taken
in turns with them. `python bench/matmul_kernels.py --threads 2 --formats Q4_0,Q8_0`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from strata import _native
from strata.backends.cpu.reading import native_id
from strata.quant import by_name
from strata.quant.encode import quantize

K_SHAPES = ((2048, 8192), (8192, 2048))  # (k, n): up and down projections
DEFAULT = "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4,F16,BF16,F32"
DEFAULT += ",F8_E4M3_B128"


def aligned(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


class Weights:
    """Packed matrices of one format and shape, more bytes of them than any cache holds."""

    def __init__(self, name: str, k: int, n: int, total: int) -> None:
        kind = by_name(name)
        self.format, self.k, self.n = native_id(kind), k, n
        # Real numbers, because subnormal ones would be slow; sixteen rows, repeated.
        few = np.random.default_rng(0).standard_normal((16, k)).astype(np.float32)
        rows = np.tile(quantize(kind, few).reshape(-1), n // 16)
        nbytes = _native.packed_bytes(self.format, n, k)
        self.count = max(1, total // nbytes)
        self.matrices = [aligned(nbytes) for _ in range(self.count)]
        _native.pack(self.format, rows, n, k, self.matrices[0])
        for other in self.matrices[1:]:
            other[:] = self.matrices[0]
        self.nbytes = nbytes

    def acts(self, isa: str, rows: int) -> np.ndarray:
        x = np.random.default_rng(1).standard_normal((rows, self.k)).astype(np.float32)
        info = _native.format_info(self.format)
        if not info["quantised_input"]:
            return x
        width = _native.act_row_bytes(self.k)
        out = aligned(rows * width).reshape(rows, width)
        for r in range(rows):
            _native.quantize_row(isa, x[r], out[r])
        return out


def in_threads(pool: ThreadPoolExecutor, threads: int, work: Callable[[int], None]) -> float:
    start = time.perf_counter()
    list(pool.map(work, range(threads)))
    return time.perf_counter() - start


def product(w: Weights, isa: str, rows: int, threads: int) -> Callable[[int], None]:
    acts = w.acts(isa, rows)
    out = np.empty((rows, w.n), np.float32)
    panels = -(-w.n // 16)

    def work(thread: int) -> None:
        begin, end = panels * thread // threads, panels * (thread + 1) // threads
        for matrix in w.matrices:
            _native.matmul(isa, w.format, matrix, w.n, w.k, acts, out, panel0=begin, panel1=end)

    return work


def reading(w: Weights, isa: str, threads: int) -> Callable[[int], None]:
    def work(thread: int) -> None:
        begin, end = w.nbytes * thread // threads, w.nbytes * (thread + 1) // threads
        for matrix in w.matrices:
            _native.read_stream(isa, matrix[begin:end])

    return work


def measure(args: argparse.Namespace) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.threads) as pool:
        for name in args.formats.split(","):
            for k, n in K_SHAPES:
                w = Weights(name, k, n, args.megabytes << 20)
                read = reading(w, args.isa, args.threads)
                one = product(w, args.isa, 1, args.threads)
                pairs = [
                    (in_threads(pool, args.threads, read), in_threads(pool, args.threads, one))
                    for _ in range(args.repeat)
                ]
                total = w.nbytes * w.count
                plain = statistics.median(total / r for r, _ in pairs)
                row: dict[str, Any] = {
                    "format": name,
                    "k": k,
                    "n": n,
                    "read_gb_s": round(plain / 1e9, 1),
                    "decode_gb_s": round(statistics.median(total / t for _, t in pairs) / 1e9, 1),
                    "share": round(statistics.median(r / t for r, t in pairs), 3),
                }
                del w.matrices[1:]
                for rows in args.rows:
                    many = product(w, args.isa, rows, args.threads)
                    times = [in_threads(pool, args.threads, many) for _ in range(args.repeat)]
                    ops = 2.0 * rows * n * k
                    row[f"gops_{rows}"] = round(ops / statistics.median(times) / 1e9)
                results.append(row)
    return {"isa": args.isa, "threads": args.threads, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=_native.available_isas()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", default=DEFAULT)
    parser.add_argument("--rows", type=int, nargs="*", default=[4, 16, 128])
    parser.add_argument("--megabytes", type=int, default=192)
    parser.add_argument("--repeat", type=int, default=9)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
