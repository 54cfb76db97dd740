"""Activations in blocks of 32 int8, the same integers on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from strata import _native
from support.native_weights import ISAS, Bytes, Floats, act_blocks, aligned, draw


def quantised(isa: str, x: Floats) -> Bytes:
    out = aligned(1, _native.act_row_bytes(x.size))
    out[:] = 0xEE
    _native.quantize_row(isa, x, out[0])
    return out


def definition(x: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales as numpy rounds them: float32, nearest even."""
    blocks = x.reshape(-1, 32)
    amax = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.where(amax > 0, np.float32(127) / np.where(amax > 0, amax, 1), 0)
    q = np.rint(blocks * inverse.astype(np.float32)).astype(np.int32)
    return q, (amax / np.float32(127))[:, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [32, 576, 4096])
def test_definition(isa: str, k: int) -> None:
    x = draw(k) * np.exp(draw(k, seed=1))
    f = act_blocks(quantised(isa, x), x.size)
    q, scale = definition(x)
    assert np.array_equal(f["q"][0], q)
    assert np.array_equal(f["scale"][0], scale)
    halves = q.reshape(-1, 2, 16).sum(axis=2)
    sums = np.concatenate([halves, halves.sum(axis=1, keepdims=True)], axis=1)
    assert np.array_equal(f["nsum"][0], -sums)
    assert np.array_equal(f["dsum"][0], scale[:, None] * sums.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_ties_go_to_even(isa: str) -> None:
    x = np.zeros(32, np.float32)
    x[:6] = [127, 0.5, 1.5, -2.5, 62.5, -0.5]
    assert act_blocks(quantised(isa, x), x.size)["q"][0, 0, :6].tolist() == [127, 0, 2, -2, 62, 0]


@pytest.mark.parametrize("isa", ISAS)
def test_zeros_and_tiny_blocks(isa: str) -> None:
    x = np.zeros(96, np.float32)
    x[32:64] = 1e-40
    x[64] = 1e-30
    f = act_blocks(quantised(isa, x), x.size)
    assert (f["q"][0, :2] == 0).all()
    assert f["scale"][0, :2].tolist() == [0, 0]
    assert f["q"][0, 2, 0] == 127


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 31])
def test_not_a_number_marks_its_block_only(isa: str, bad: float, place: int) -> None:
    x = draw(64)
    x[32 + place] = bad
    f = act_blocks(quantised(isa, x), x.size)
    assert np.isfinite(f["scale"][0, 0])
    assert np.isnan(f["scale"][0, 1])
    assert np.isnan(f["dsum"][0, 1]).all()


def test_wrong_calls_are_refused() -> None:
    out = aligned(2, 64)
    with pytest.raises(ValueError, match="multiple of 32"):
        _native.quantize_row(ISAS[0], draw(31), out[0])
    with pytest.raises(ValueError, match="needed"):
        _native.quantize_row(ISAS[0], draw(64), out[0])
    with pytest.raises(ValueError, match="aligned"):
        _native.quantize_row(ISAS[0], draw(32), out.reshape(-1)[1:65])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_left_over(isa: str) -> None:
    """The second row is what the first leaves over of each number, in the same form."""
    x = draw(4096) * np.exp(draw(4096, seed=1))
    x[:32], x[32:64] = 0, 1e-30
    x[100] = np.nan
    first, rest = aligned(2, _native.act_row_bytes(x.size))
    first[:] = rest[:] = 0xEE
    _native.quantize_row(isa, x, first, rest)
    assert np.array_equal(first, quantised(isa, x)[0])
    f = act_blocks(first[None], x.size)
    # Exact but for one rounding, as a fused product and sum is; scalar code rounds both.
    taken = (f["q"][0] * f["scale"][0].astype(np.float64)[:, None]).reshape(-1)
    if isa == "scalar":
        taken = taken.astype(np.float32).astype(np.float64)
    left = np.where(np.isnan(taken), 0, x.astype(np.float64) - taken).astype(np.float32)
    assert np.array_equal(rest, quantised(isa, left)[0])
    g = act_blocks(rest[None], x.size)
    both = taken + (g["q"][0] * g["scale"][0].astype(np.float64)[:, None]).reshape(-1)
    # Half a step of 8 bits, then half a step of 8 more; 1e-6 for the roundings on the way.
    step = np.repeat(np.abs(x).reshape(-1, 32).max(axis=1) / 127, 32)
    whole = np.isfinite(step)
    assert (np.abs(both - x)[whole] <= step[whole] / 2 / 254 * (1 + 1e-3) + 1e-36).all()
    assert np.isnan(both[96:128]).all()
