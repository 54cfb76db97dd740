"""Whether two recordings of record_bits.py have the same bits.

    python tools/compare_bits.py before.npz after.npz

Exits 0 if every case of either is in both with equal arrays; else names each that differs or is
missing on one side, and exits 1. Recordings of different model files or instruction sets cannot be
compared: exit 2. Needs numpy alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]


def differences(before: Mapping[str, Bits], after: Mapping[str, Bits]) -> list[str]:
    """One line for each case that is not the same on both sides; none at all is a difference."""
    if not before and not after:
        return ["there is no case on either side"]
    found = []
    for name in sorted({*before, *after}):
        if name not in after:
            found.append(f"{name}: missing after")
        elif name not in before:
            found.append(f"{name}: missing before")
        elif before[name].shape != after[name].shape:
            found.append(f"{name}: shape {before[name].shape} before, {after[name].shape} after")
        elif before[name].dtype != after[name].dtype:
            found.append(f"{name}: {before[name].dtype} before, {after[name].dtype} after")
        elif apart := np.argwhere(before[name] != after[name]).tolist():
            total = before[name].size
            found.append(f"{name}: {len(apart)} of {total} values differ, first at {apart[0]}")
    return found


def obstacles(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Why two manifests are not of the same experiment."""
    found = []
    for isa in sorted({*before["isas"], *after["isas"]}):
        sides = [side["isas"].get(isa, "none") for side in (before, after)]
        if sides[0] != sides[1]:
            found.append(f"the instruction set {isa!r} was {sides[0]} before and {sides[1]} after")
    for name in sorted({*before["models"], *after["models"]}):
        if before["models"].get(name) != after["models"].get(name):
            found.append(f"the model file {name} is not the same")
    return found


def loaded(path: Path) -> tuple[dict[str, Bits], dict[str, Any]]:
    """The arrays and the manifest of a recording."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(path.with_suffix(".json").read_text())


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    before, first = loaded(args.before)
    after, second = loaded(args.after)
    if reasons := obstacles(first, second):
        print("\n".join(reasons))
        raise SystemExit(2)
    lines = differences(before, after)
    print("\n".join(lines) if lines else f"{len(before)} cases, all of the same bits")
    if lines:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
