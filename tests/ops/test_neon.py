"""The kernels of another processor, cross-compiled and run in an emulator: every bit of packing,
quantising, products, rows and attention is that of the plain kernels."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from strata.quant import by_name, grid
from support.native_weights import ALL, GRIDS, draw, file_rows, number_of

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING = [tool for tool in ("cmake", COMPILER, EMULATOR) if shutil.which(tool) is None]
# rows, n: tiles and their remainders; a last panel that is not full.
SHAPES = [(1, 40), (2, 16), (3, 17), (9, 7), (33, 40)]


def numbers(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


def inputs() -> bytes:
    """Codebooks and products as tests/native/compare_kernels.cpp reads them."""
    parts = [numbers(len(GRIDS))]
    for name in GRIDS:
        codebook = grid(name).reshape(-1).view(np.uint8).tobytes()
        parts += [numbers(by_name(name).gguf_id or 0, len(codebook)), codebook]
    products = []
    for name in ALL:
        kind = by_name(name)
        widths = (1, 63, 1100) if kind.elements == 1 else (kind.elements, 768)
        for k in widths:
            for rows, n in SHAPES:
                weight = file_rows(name, n, k).tobytes()
                x = draw(rows, k, seed=rows).tobytes()
                products.append(numbers(number_of(kind), n, k, rows) + weight + x)
    return b"".join([*parts, numbers(len(products)), *products])


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="the other tests run NEON here")
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_neon_has_the_bits_of_the_plain_kernels(tmp_path: Path) -> None:
    build = tmp_path / "build"
    options = {
        "STRATA_KERNELS_ONLY": "ON",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
    }
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *(f"-D{k}={v}" for k, v in options.items())],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count())],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "inputs").write_bytes(inputs())
    run = [EMULATOR, str(build / "compare_kernels"), "neon", str(tmp_path / "inputs")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compared = int(done.stdout.split()[0])
    # A product compares three arrays; rows and attention come on top.
    assert compared > 3 * len(ALL) * 2 * len(SHAPES) * 0.8
