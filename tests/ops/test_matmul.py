"""The matrix kernels of every format and instruction set against float64.

The tolerance: a dot product of integers is exact; then each block (16 or 32 elements) is scaled and
added with at most three roundings, and scales are products with one more. Float formats round once
an element. All of it relative to the sum of the magnitudes that are added.
"""

from __future__ import annotations

import numpy as np
import pytest

from strata import _native
from strata.quant import by_name, dequantize
from support.native_weights import (
    ALL,
    BOOKS,
    CODES,
    EPS,
    ISAS,
    Floats,
    Packed,
    activations,
    draw,
    multiply,
    packed,
    read_back,
)

# rows, n: tiles and their remainders; a last panel that is not full.
SHAPES = [(1, 1), (1, 40), (2, 16), (3, 17), (4, 15), (5, 33), (8, 32), (9, 7), (15, 24), (33, 40)]


def widths(name: str) -> list[int]:
    """Inner sizes: one block, an odd number of them, and more than a cached range of K holds."""
    block = by_name(name).elements
    if block == 1:
        return [1, 5, 32, 63, 576, 1100]
    if block == 128:
        return [128, 384, 2560]
    return [block, 3 * block, 576, 2560] if block <= 64 else [256, 768, 2560]


def magnitudes(weight: Packed) -> np.ndarray:
    """Upper bounds of |scale * code| + |minimum|: within a block both are below its extremes."""
    size = np.abs(weight.values).astype(np.float64)
    if weight.name not in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"):
        return size
    blocks = size.reshape(weight.n, -1, 32)
    return (blocks + 2 * blocks.max(axis=2, keepdims=True)).reshape(size.shape)


def expected(weight: Packed, isa: str, acts: Floats) -> tuple[np.ndarray, np.ndarray]:
    """The exact product and how far from it the kernel may be."""
    x = read_back(weight, isa, acts)
    roundings = 3 * (weight.k // 16) + 8 if weight.quantised_input else weight.k + 8
    return x @ weight.values.astype(np.float64).T, (
        roundings * EPS * (np.abs(x) @ magnitudes(weight).T) + 1e-30
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ALL)
def test_product(name: str, isa: str) -> None:
    for k in widths(name):
        for rows, n in SHAPES:
            weight = packed(name, n, k)
            acts = activations(weight, isa, draw(rows, k, seed=rows))
            want, tolerance = expected(weight, isa, acts)
            got = multiply(weight, isa, acts)
            assert (np.abs(got - want) <= tolerance).all(), (k, rows, n)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "F16", "BF16", "IQ2_S"])
def test_bias_and_residual_are_added_in_this_order(name: str, isa: str) -> None:
    n, k, rows = 37, 512, 11
    weight = packed(name, n, k)
    acts = activations(weight, isa, draw(rows, k))
    bias, residual = draw(n, seed=1), draw(rows, n, seed=2)
    plain = multiply(weight, isa, acts)
    assert np.array_equal(multiply(weight, isa, acts, bias=bias), plain + bias)
    assert np.array_equal(multiply(weight, isa, acts, residual=residual), plain + residual)
    both = multiply(weight, isa, acts, bias=bias, residual=residual)
    assert np.array_equal(both, (plain + bias) + residual)
    in_place = residual.copy()
    _native.matmul(
        isa, weight.format, weight.data, n, k, acts, in_place, bias=bias, residual=in_place
    )
    assert np.array_equal(in_place, both)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CODES + BOOKS)
def test_extreme_codes_do_not_overflow(name: str, isa: str) -> None:
    """All codes and activations at their limits: 16-bit sums inside the products must hold them."""
    kind = by_name(name)
    n, k = 16, 512
    one = packed(name, n, k)
    for fill in (0x00, 0xFF, 0x7F, 0x80):
        raw = np.full((n * k // kind.elements, kind.nbytes), fill, np.uint8)
        own = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)}
        scales = own.get(name, (0, 2))
        if name not in ("Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K"):
            scales = scales[:1]
        if name == "MXFP4":
            raw[:, 0] = 127
        elif name == "NVFP4":
            raw[:, :4] = 56
        elif name == "IQ1_M":
            # A half whose four bits each are the highest of four numbers.
            raw[:, 49:56:2] = raw[:, 49:56:2] & 15 | np.array([0x00, 0x00, 0x80, 0x30], np.uint8)
        else:
            for at in scales:
                raw[:, at : at + 2] = np.array([0.5], "<f2").view(np.uint8)
        data = np.zeros_like(one.data)
        _native.pack(one.format, raw.reshape(-1), n, k, data)
        values = np.stack([unpack(one.format, data, n, k, row) for row in range(n)])
        weight = Packed(name, n, k, data, values)
        for sign in (1.0, -1.0):
            acts = activations(weight, isa, np.full((3, k), sign, np.float32))
            want, tolerance = expected(weight, isa, acts)
            assert (np.abs(multiply(weight, isa, acts) - want) <= tolerance).all(), (fill, sign)


def unpack(number: int, data: np.ndarray, n: int, k: int, row: int) -> Floats:
    out = np.empty(k, np.float32)
    _native.unpack_row(ISAS[0], number, data, n, row, out)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "F16", "BF16"])
def test_nan_and_infinity_reach_the_output(name: str, isa: str) -> None:
    weight = packed(name, 20, 512)
    x = draw(3, 512)
    x[1, 77] = np.nan
    x[2, 300] = np.inf
    got = multiply(weight, isa, activations(weight, isa, x))
    assert np.isfinite(got[0]).all()
    assert np.isnan(got[1]).all()
    assert not np.isfinite(got[2]).any()


def eight_bits(codes: np.ndarray, scale: float) -> Packed:
    """8-bit floats [n, k] with one scale for all blocks."""
    kind = by_name("F8_E4M3_B128")
    n, k = codes.shape
    raw = np.empty((n * k // 128, kind.nbytes), np.uint8)
    raw[:, :4] = np.array([scale], "<f4").view(np.uint8)
    raw[:, 4:] = codes.reshape(-1, 128)
    data = np.zeros(_native.packed_bytes(1000, n, k), np.uint8)
    _native.pack(1000, raw.reshape(-1), n, k, data)
    with np.errstate(over="ignore"):
        return Packed(kind.name, n, k, data, dequantize(kind, raw.reshape(-1), (n, k)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1.0, -0.3, 2.0**120, 1e-40])
@pytest.mark.parametrize("rows", [1, 128])
def test_every_number_of_eight_bits(rows: int, scale: float, isa: str) -> None:
    """Each code alone, also of few and of many rows: infinite where its scale makes it so."""
    codes = np.arange(256, dtype=np.uint8)
    codes[codes % 128 == 127] = 0
    weight = eight_bits(np.tile(codes.reshape(2, 128), (9, 1))[:17], scale)
    finite = np.isfinite(weight.values)
    assert finite.all() == (scale < 2.0**119)
    got = np.concatenate(
        [
            multiply(weight, isa, np.eye(128, dtype=np.float32)[first : first + rows])
            for first in range(0, 128, rows)
        ]
    ).T
    # A weight that is infinite makes all of its row infinite or no number.
    whole = finite.all(axis=1)
    assert np.array_equal(got[whole], weight.values[whole])
    assert not np.isfinite(got[~whole]).any()
    assert np.array_equal(unpack(1000, weight.data, 17, 128, 16), weight.values[16])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_no_number_of_eight_bits_reaches_its_output_alone(isa: str) -> None:
    codes = np.full((20, 256), 0x7E, np.uint8)
    codes[3, 200], codes[18, 7] = 0x7F, 0xFF
    weight = eight_bits(codes, 0.5)
    for rows in (1, 5, 40):
        got = multiply(weight, isa, np.zeros((rows, 256), np.float32))
        assert np.isnan(got[:, [3, 18]]).all()
        assert (np.delete(got, [3, 18], axis=1) == 0.0).all()


def test_wrong_calls_are_refused() -> None:
    isa = ISAS[0]
    weight = packed("Q4_0", 20, 64)
    acts = activations(weight, isa, draw(2, 64))
    out = np.zeros((2, 20), np.float32)
    given = (weight.format, weight.data, 20, 64, acts, out)

    def refused(match: str, *args: object, **more: object) -> None:
        with pytest.raises(ValueError, match=match):
            _native.matmul(*args, **more)

    refused("no kernels for 'mmx'", "mmx", *given)
    refused("no kernel for format 5", isa, 5, *given[1:])
    refused("does not fit", isa, weight.format, weight.data, 20, 65, acts, out)
    refused("packed weight: .* needed", isa, weight.format, weight.data[1:], 20, 64, acts, out)
    refused("out: must be", isa, *given[:5], out[:, 1:])
    refused("takes quantised", isa, *given[:4], draw(2, 64), out)
    refused("aligned to 64", isa, *given[:4], acts[:1], out)
    refused("row range", isa, *given, row1=3)
    refused("panel range", isa, *given, panel0=1, panel1=3)
    refused("bias: must have n", isa, *given, bias=np.zeros(19, np.float32))
    refused("residual: must be", isa, *given, residual=np.zeros((1, 20), np.float32))
