"""Encoders: equal bytes where the `gguf` package has one, derived error bounds for the others."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from strata.quant import QuantError, by_name, dequantize
from strata.quant.encode import ENCODERS, encode_e4m3, quantize
from strata.quant.floats import e4m3_values

HALF = 2.0**-11  # relative error of rounding to half precision


def weights(shape: tuple[int, int] = (40, 768)) -> np.ndarray:
    """Gaussian rows of very different sizes, with rows of zeros, of one sign and of one value."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 2, (shape[0], 1))
    values[0] = 0
    values[1] = np.abs(values[1])
    values[2] = -np.abs(values[2])
    values[3] = 0.25
    values[4, ::3] = 0
    return values.astype(np.float32)


PACKAGE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.mark.parametrize("name", PACKAGE)
def test_bytes_equal_the_gguf_package(name: str) -> None:
    values = weights()
    want = quants.quantize(values, gguf.GGMLQuantizationType[name])
    got = quantize(by_name(name), values)
    np.testing.assert_array_equal(got, want.view(np.uint8))


def round_trip(name: str, values: np.ndarray) -> np.ndarray:
    return dequantize(by_name(name), quantize(by_name(name), values), values.shape)


def assert_within(name: str, values: np.ndarray, bound: np.ndarray, width: int) -> None:
    """`bound` [blocks, 256 / width] holds the largest allowed error of each sub-block."""
    error = np.abs(round_trip(name, values) - values).reshape(len(bound), -1, width).max(axis=2)
    assert (error <= bound * (1 + 1e-5) + 1e-12).all(), float((error / (bound + 1e-30)).max())


@pytest.mark.parametrize(
    ("name", "width", "bits", "scale_bits"),
    [("Q2_K", 16, 2, 4), ("Q4_K", 32, 4, 6), ("Q5_K", 32, 5, 6)],
)
def test_shifted_formats_stay_within_their_bound(
    name: str, width: int, bits: int, scale_bits: int
) -> None:
    values = weights()
    sub = values.reshape(-1, 256 // width, width)
    low = np.minimum(sub.min(axis=2), 0)
    span = np.maximum(sub.max(axis=2), 0) - low
    step = span / (2**bits - 1)
    d = step.max(axis=1, keepdims=True) / (2**scale_bits - 1)
    dmin = (-low).max(axis=1, keepdims=True) / (2**scale_bits - 1)
    # Half of a step whose scale was rounded up, half a unit of the minimum, and what rounding the
    # two block scales to half precision can take from the reach.
    bound = (step + d) / 2 + dmin / 2 + HALF * (2 * span - low)
    assert_within(name, values, bound, width)


@pytest.mark.parametrize(("name", "middle", "scale_top"), [("Q3_K", 4, 31), ("Q6_K", 32, 127)])
def test_symmetric_formats_stay_within_their_bound(name: str, middle: int, scale_top: int) -> None:
    values = weights()
    step = np.abs(values.reshape(-1, 16, 16)).max(axis=2) / middle
    d = step.max(axis=1, keepdims=True) / scale_top
    # There is one level fewer on one side (a whole step), and a scale is off by half a unit of d
    # (plus half-precision rounding), which the outermost level multiplies by `middle`.
    bound = step + middle * (d / 2 + HALF * step)
    assert_within(name, values, bound, 16)


def test_iq4_formats_stay_within_their_bound() -> None:
    values = weights()
    # From level 113 to the mirrored extreme 127 are 14 steps; half the widest gap is only 12.
    step = np.abs(values.reshape(-1, 8, 32)).max(axis=2) / 127
    assert_within("IQ4_NL", values, step * (14 + 127 * HALF), 32)
    d = step.max(axis=1, keepdims=True) / 31
    assert_within("IQ4_XS", values, 14 * (step + d / 2) + 127 * (d / 2 + HALF * step), 32)


def test_scaled_8_bit_floats_stay_within_their_bound() -> None:
    values = weights()
    largest = np.abs(values.reshape(-1, 128)).max(axis=1, keepdims=True)
    got = round_trip("F8_E4M3_B128", values)
    # Three mantissa bits: half a unit is 2^-4 of the value; below 2^-6 of the scale the step is
    # 2^-9 of it.
    bound = np.abs(values.reshape(-1, 128)) * 2.0**-4 + largest / 448 * 2.0**-10
    assert (np.abs(got - values).reshape(-1, 128) <= bound * (1 + 1e-5)).all()


def test_more_bits_are_closer() -> None:
    values = weights()[5:]

    def error(name: str) -> float:
        return float(np.square((round_trip(name, values) - values) / values.std(1)[:, None]).mean())

    chain = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"]
    errors = [error(name) for name in chain]
    assert errors == sorted(errors, reverse=True)
    assert error("Q4_K") < error("Q4_0")
    assert error("Q6_K") < 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_zeros_come_back_as_zeros(name: str) -> None:
    zeros = np.zeros((2, 256), dtype=np.float32)
    np.testing.assert_array_equal(round_trip(name, zeros), zeros)


def test_every_8_bit_float_encodes_to_itself_and_halves_go_to_even() -> None:
    values = e4m3_values()
    finite = np.flatnonzero(~np.isnan(values))
    np.testing.assert_array_equal(encode_e4m3(values[finite]), finite)
    positive = values[:127]
    middle = (positive[1:] + positive[:-1]) / 2
    assert (encode_e4m3(middle) % 2 == 0).all()
    assert encode_e4m3(np.array([1e9], dtype=np.float32))[0] == 0x7E


def test_unknown_encoders_and_cut_rows_are_refused() -> None:
    with pytest.raises(QuantError, match="no encoder for IQ1_S"):
        quantize(by_name("IQ1_S"), np.zeros((1, 256), dtype=np.float32))
    with pytest.raises(QuantError, match="32 values in a block"):
        quantize(by_name("Q4_0"), np.zeros((2, 48), dtype=np.float32))
