"""Native encoders: what readers see, on every instruction set alike, beside the plain encoders."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import strata._native as _native
from strata.quant import ALL, BlockType, by_name, dequantize
from strata.quant.encode import ENCODERS, quantize
from strata.quantizer.encoder import Encoder, NotFinite, encodable

F32 = by_name("F32")
TYPES = [t for t in ALL if encodable(t)]
ISAS = [isa for isa in ("avx512", "avx2", "neon", "scalar") if isa in _native.available_isas()]
Floats = NDArray[np.float32]


def weights(rows: int = 19, k: int = 512) -> tuple[Floats, Floats]:
    """Rows of several sizes, and the importance of columns."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.standard_normal((rows, 1)))
    x = (rng.standard_normal((rows, k)) * sizes * 0.02).astype(np.float32)
    return x, np.exp(rng.standard_normal(k)).astype(np.float32)


def encode(type: BlockType, x: Floats, *rest: object, threads: int = 1, isa: str | None = None):  # type: ignore[no-untyped-def]
    raw = x.reshape(-1).view(np.uint8)
    return Encoder(threads, isa).encode(type, F32, raw, x.shape, *rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_readers_see_what_was_meant_on_every_instruction_set(type: BlockType) -> None:
    x, importance = weights()
    first = None
    for isa, threads in [(isa, 1 + i % 2) for i, isa in enumerate(ISAS)]:
        seen = np.empty_like(x)
        raw = encode(type, x, importance, None, None, seen, threads=threads, isa=isa)
        assert np.array_equal(seen, dequantize(type, raw, x.shape))
        assert first is None or np.array_equal(raw, first)
        first = raw


@pytest.mark.parametrize("name", [n for n in ENCODERS if encodable(by_name(n))])
def test_weighted_errors_are_below_those_of_the_plain_encoders(name: str) -> None:
    type, (x, importance) = by_name(name), weights()

    def error(raw: NDArray[np.uint8]) -> float:
        gap = dequantize(type, raw.reshape(-1), x.shape) - x
        return float((gap * gap * importance).sum())

    ours, plain = error(encode(type, x, importance)), error(quantize(type, x))
    assert ours <= plain if name in ("F32", "F16", "BF16") else ours < plain


def best_scale(x: Floats, w: Floats, low: int, high: int) -> float:
    """The least weighted error of a block under any scale of a fine grid, in float64."""
    scales = np.abs(x).max() / np.linspace(0.5, 1.2, 1500) / max(-low, high)
    scales = np.concatenate([scales, -scales])[:, None]
    levels = np.rint(x / scales).clip(low, high)
    refitted = (w * x * levels).sum(1) / (w * levels * levels).sum(1)
    return float((w * (x - refitted[:, None] * levels) ** 2).sum(1).min())


@pytest.mark.parametrize(("name", "low", "high"), [("Q4_0", -8, 7), ("Q5_0", -16, 15)])
def test_scales_are_near_the_best_that_there_are(name: str, low: int, high: int) -> None:
    type, (x, importance) = by_name(name), weights(4, 256)
    gap = dequantize(type, encode(type, x, importance), x.shape) - x
    ours = float((gap * gap * importance).sum())
    w = importance.reshape(-1, 32).astype(float)
    blocks = x.reshape(4, -1, 32).astype(float)
    best = sum(best_scale(b, w[i], low, high) for row in blocks for i, b in enumerate(row))
    assert best * 0.999 < ours < 1.03 * best


@pytest.mark.parametrize("type", TYPES, ids=lambda t: t.name)
def test_zeros_stay_and_what_is_no_number_is_refused(type: BlockType) -> None:
    x = np.zeros((3, 256), np.float32)
    if type.name != "Q1_0":
        assert not dequantize(type, encode(type, x), x.shape).any()
    x[1, 7] = np.nan
    with pytest.raises(NotFinite):
        encode(type, x)


@pytest.mark.parametrize("source", ["F16", "BF16"])
def test_halves_are_read_as_they_are(source: str) -> None:
    type, (x, _) = by_name(source), weights()
    raw = quantize(type, x).reshape(-1)
    ours = Encoder(1).encode(by_name("Q6_K"), type, raw, x.shape)
    assert np.array_equal(ours, encode(by_name("Q6_K"), dequantize(type, raw, x.shape)))


def naive_obq(type: BlockType, x: Floats, hessian: NDArray[np.float64]) -> Floats:
    """Optimal brain quantisation in its own words: columns from left to right, the inverse Hessian
    of those that are left updated after each; scales fitted where a block begins."""
    rows, k = x.shape
    left, out = x.astype(np.float64), np.empty((rows, k), np.float32)
    inverse = np.linalg.inv(hessian)
    for start in range(0, k, type.elements):
        block = left[:, start : start + type.elements].astype(np.float32)
        raw = encode(type, np.ascontiguousarray(block)).reshape(rows, -1)
        d = raw[:, :2].copy().view(np.float16).astype(np.float64)
        for j in range(start, start + type.elements):
            q = np.rint(left[:, j : j + 1] / d).clip(-127, 127)
            out[:, j] = (q * d)[:, 0]
            gap = (left[:, j : j + 1] - q * d) / inverse[j, j]
            left -= gap * inverse[j]
            inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


def test_error_propagation_is_naive_obq() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    acts = rng.standard_normal((300, 64)) @ rng.standard_normal((64, 64))
    hessian = acts.T @ acts / 300 + 0.01 * np.eye(64)
    # H^-1 = U^T U with U upper: the transposed Cholesky factor.
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    type, seen = by_name("Q8_0"), np.empty_like(x)
    encode(type, x, None, factor, None, seen)
    assert np.allclose(seen, naive_obq(type, x, hessian), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "IQ4_XS", "IQ3_S", "IQ2_XS", "IQ1_M"]
)
def test_error_propagation_lowers_the_error_of_outputs(name: str) -> None:
    rng = np.random.default_rng(6)
    type, k = by_name(name), 256
    x = rng.standard_normal((16, k)).astype(np.float32)
    acts = rng.standard_normal((1000, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    hessian = acts.T @ acts / 1000
    inverse = np.linalg.inv(hessian + 0.01 * np.diag(hessian).mean() * np.eye(k))
    factor = np.linalg.cholesky(inverse).T.astype(np.float32)
    plain, seen = np.empty_like(x), np.empty_like(x)
    encode(type, x, np.diag(hessian).astype(np.float32), None, None, plain)
    encode(type, x, (1 / np.diag(factor) ** 2).astype(np.float32), factor, None, seen)

    def error(y: Floats) -> float:
        return float((((y - x) @ acts.T) ** 2).sum())

    assert error(seen) < 0.8 * error(plain)
    # No correlation, nothing to make up for.
    unit = np.eye(k, dtype=np.float32)
    encode(type, x, None, unit, None, seen)
    encode(type, x, None, None, None, plain)
    assert np.array_equal(seen, plain)


def test_blocks_may_come_in_another_order() -> None:
    x, importance = weights(3, 512)
    type, order = by_name("Q4_K"), np.array([1, 0], np.int32)
    unit = np.eye(512, dtype=np.float32)
    assert np.array_equal(
        encode(type, x, importance, unit, order), encode(type, x, importance, unit)
    )
    with pytest.raises(ValueError, match="once"):
        encode(type, x, importance, unit, np.array([1, 1], np.int32))
