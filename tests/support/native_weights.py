"""Weights and activations as the native kernels take them, with what they decode to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata import _native
from strata.quant import BlockType, by_name, dequantize, grid
from strata.quant.encode import ENCODERS, quantize

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

ISAS: list[str] = _native.available_isas()
LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SMALL = ["MXFP4", "NVFP4", "TQ2_0", "Q1_0", "Q2_0"]
CODES = [*LEGACY, *K_QUANTS, "IQ4_NL", "IQ4_XS", *SMALL]
NUMBERS = ["F32", "F16", "BF16", "F64", "F8_E4M3_B128"]
GRIDS = ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
BOOKS = [*GRIDS, "IQ1_M", "TQ1_0"]
ALL = CODES + NUMBERS + BOOKS
EPS = 2.0**-24

for _name in GRIDS:
    _native.set_grid(by_name(_name).gguf_id, grid(_name).reshape(-1).view(np.uint8))


def number_of(kind: BlockType) -> int:
    """The kernels' number of a format: GGUF's, or 1000 for the 8-bit floats with block scales."""
    return 1000 if kind.gguf_id is None else kind.gguf_id


def aligned(rows: int, width: int) -> Bytes:
    """Zeroed bytes [rows, width] that begin at a multiple of 64."""
    room = np.zeros(rows * width + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + rows * width].reshape(rows, width)


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@cache
def file_rows(name: str, n: int, k: int, seed: int = 0) -> Bytes:
    """Bytes of an [n, k] matrix as a file keeps them, with finite scales of ordinary size."""
    kind = by_name(name)
    if name in ENCODERS:
        return quantize(kind, draw(n, k, seed=seed)).reshape(-1)
    if name == "F64":
        return np.random.default_rng(seed).standard_normal((n, k)).reshape(-1).view(np.uint8)
    blocks = n * k // kind.elements
    raw = np.random.default_rng(seed).integers(0, 256, (blocks, kind.nbytes), dtype=np.uint8)
    if name == "NVFP4":
        raw[:, :4] &= 0x3F
    elif name == "IQ1_M":  # the half-precision scale lies in the top nibbles of four words
        raw[:, 49:56:2] = (raw[:, 49:56:2] & 0x0F) | np.array([0x00, 0x00, 0x00, 0x20], np.uint8)
    else:
        raw[:, :2] = np.array([0.01], "<f2").view(np.uint8)
    return raw.reshape(-1)


@dataclass(frozen=True)
class Packed:
    """A packed [n, k] weight and the numbers it stands for."""

    name: str
    n: int
    k: int
    data: Bytes
    values: Floats

    @property
    def format(self) -> int:
        return number_of(by_name(self.name))

    @property
    def quantised_input(self) -> bool:
        return bool(_native.format_info(self.format)["quantised_input"])


@cache
def packed(name: str, n: int, k: int, seed: int = 0) -> Packed:
    kind = by_name(name)
    rows = file_rows(name, n, k, seed)
    number = number_of(kind)
    data = np.zeros(_native.packed_bytes(number, n, k), np.uint8)
    _native.pack(number, rows, n, k, data)
    return Packed(name, n, k, data, dequantize(kind, rows, (n, k)))


def activations(weight: Packed, isa: str, x: Floats) -> Floats | Bytes:
    """Rows of x as the weight's kernel reads them."""
    if not weight.quantised_input:
        return x
    acts = aligned(len(x), _native.act_row_bytes(weight.k))
    for row, out in zip(x, acts, strict=True):
        _native.quantize_row(isa, row, out)
    return acts


def act_blocks(acts: Bytes, k: int) -> dict[str, NDArray[Any]]:
    """The fields of quantised rows of k activations, [rows, blocks, ...]."""
    blocks = acts.reshape(len(acts), -1, 64)[:, : k // 32]
    return {
        "q": blocks[..., :32].view(np.int8),
        "scale": blocks[..., 32:36].copy().view(np.float32)[..., 0],
        "nsum": blocks[..., 36:48].copy().view(np.int32),
        "dsum": blocks[..., 48:60].copy().view(np.float32),
    }


def read_back(weight: Packed, isa: str, acts: Floats | Bytes) -> NDArray[np.float64]:
    """What the kernel's activations stand for."""
    if weight.quantised_input:
        f = act_blocks(np.asarray(acts, np.uint8), weight.k)
        return (f["q"] * f["scale"].astype(np.float64)[..., None]).reshape(len(acts), weight.k)
    if weight.name == "BF16" and isa == "avx512":  # multiplied as pairs of bfloat16
        bits = np.asarray(acts, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
        return rounded.astype(np.uint32).view(np.float32).astype(np.float64)
    return np.asarray(acts, np.float64)


def multiply(weight: Packed, isa: str, acts: Floats | Bytes, **more: Any) -> Floats:
    """acts times the weight's rows, into an array of guard values that must stay untouched."""
    rows = len(acts)
    guarded = np.full((rows + 2, weight.n + 40), -777.0, np.float32)
    out = guarded[1:-1, 20 : 20 + weight.n]
    out[:] = np.nan
    _native.matmul(isa, weight.format, weight.data, weight.n, weight.k, acts, out, **more)
    result = out.copy()
    out[:] = -777.0
    assert (guarded == -777.0).all(), "wrote outside of its rows and columns"
    return result


def assert_same_bits(got: Floats, want: Floats) -> None:
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
