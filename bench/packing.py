"""How fast one thread packs the rows of a file into kernel panels, format by format, with vectors
and without, beside copying the same bytes.

`python bench/packing.py [--formats Q4_K,Q8_0] [--rounds 5] [--json]`. Turns alternate within a
round; figures are medians of GB of the file a second, ratios those of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from strata import _native
from strata.backends.cpu.reading import native_id
from strata.quant import by_name

DEFAULT = "F32,F16,BF16,Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS,MXFP4"
ROWS, COLUMNS = 1024, 4096
SOURCE_BYTES = 256 << 20


def measure(name: str, rounds: int) -> dict[str, object]:
    """One format: rows that come from memory, as they do where a disk has just put them there."""
    kind = by_name(name)
    number = native_id(kind)
    nbytes = kind.tensor_nbytes((ROWS, COLUMNS))
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, nbytes, np.uint8) for _ in range(SOURCE_BYTES // nbytes)]
    out = np.zeros(_native.packed_bytes(number, ROWS, COLUMNS), np.uint8)
    copied = np.zeros(nbytes, np.uint8)
    isas = _native.available_isas()

    def packing(isa: str) -> Callable[[np.ndarray], None]:
        return lambda rows: _native.pack(number, rows, ROWS, COLUMNS, out, isa=isa)

    turns: dict[str, Callable[[np.ndarray], None]] = {isa: packing(isa) for isa in isas}
    turns["copy"] = lambda rows: np.copyto(copied, rows)
    rates: dict[str, list[float]] = {turn: [] for turn in turns}
    for _ in range(rounds):
        for turn, work in turns.items():
            # Without vectors it takes long, and a few matrices tell as much.
            some = sources[:8] if turn == "scalar" else sources
            begin = time.perf_counter()
            for rows in some:
                work(rows)
            rates[turn].append(nbytes * len(some) / (time.perf_counter() - begin))
    gains = [a / b for a, b in zip(rates[isas[0]], rates["scalar"], strict=True)]
    return {
        "format": name,
        "bytes_s": {turn: statistics.median(r) for turn, r in rates.items()},
        "isa": isas[0],
        "ratio_to_scalar": statistics.median(gains),
        "ratio_spread": [min(gains), max(gains)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = [measure(name, args.rounds) for name in args.formats.split(",")]
    if args.json:
        print(json.dumps(results, indent=1))
        return
    for r in results:
        rates = "  ".join(f"{turn} {rate / 1e9:5.1f}" for turn, rate in r["bytes_s"].items())
        low, high = r["ratio_spread"]
        print(
            f"{r['format']:7} GB/s: {rates}   {r['isa']}/scalar {r['ratio_to_scalar']:.1f} "
            f"({low:.1f}-{high:.1f})"
        )


if __name__ == "__main__":
    main()
