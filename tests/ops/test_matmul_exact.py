"""The bits of an output depend on its row and its column alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata import _native
from support.native_weights import (
    ALL,
    BOOKS,
    CODES,
    ISAS,
    NUMBERS,
    Bytes,
    Floats,
    Packed,
    activations,
    aligned,
    assert_same_bits,
    draw,
    multiply,
    packed,
)
from support.sampling import every

K = 2560  # longer than the range of K that the kernels keep in the first-level cache


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ALL)
def test_rows_together_are_rows_alone(name: str, isa: str) -> None:
    rows = 33
    weight = packed(name, 40, K)
    acts = activations(weight, isa, draw(rows, K))
    together = multiply(weight, isa, acts)
    for row in range(rows):
        assert_same_bits(multiply(weight, isa, acts[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q8_0", "F16", "BF16"])
def test_every_number_of_rows(name: str, isa: str) -> None:
    weight = packed(name, 24, 512)
    acts = activations(weight, isa, draw(33, 512))
    all_rows = multiply(weight, isa, acts)
    for rows in range(1, 33):
        assert_same_bits(multiply(weight, isa, acts[:rows]), all_rows[:rows])
        assert_same_bits(multiply(weight, isa, acts[-rows:]), all_rows[-rows:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "F32", "BF16", "IQ3_S"])
def test_every_number_of_columns(name: str, isa: str) -> None:
    """The first columns of a wider weight are those of a narrower one."""
    acts = None
    widest = None
    for n in range(40, 0, -1):
        weight = packed(name, n, 256)
        if acts is None:
            acts = activations(weight, isa, draw(3, 256))
            widest = multiply(weight, isa, acts)
            values = weight.values
        assert np.array_equal(weight.values[: min(n, 3)], values[: min(n, 3)])
        got = multiply(weight, isa, acts)
        assert widest is not None
        assert_same_bits(got, widest[:, :n])


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_of_rows_and_panels(isa: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CODES + NUMBERS + BOOKS))
    n = data.draw(st.integers(1, 70))
    rows = data.draw(st.integers(1, 20))
    k = 256 * data.draw(st.integers(1, 4))
    weight = packed(name, n, k)
    acts = activations(weight, isa, draw(rows, k))
    whole = multiply(weight, isa, acts)
    panels = -(-n // 16)
    row_cuts = [0, *sorted(data.draw(st.lists(st.integers(0, rows), max_size=3))), rows]
    panel_cuts = [0, *sorted(data.draw(st.lists(st.integers(0, panels), max_size=3))), panels]
    out = np.full((rows, n), np.nan, np.float32)
    for row0, row1 in pairwise(row_cuts):
        for panel0, panel1 in pairwise(panel_cuts):
            _native.matmul(
                isa, weight.format, weight.data, n, k, acts, out,
                row0=row0, row1=row1, panel0=panel0, panel1=panel1,
            )  # fmt: skip
    assert_same_bits(out, whole)


@pytest.mark.skipif(len(ISAS) < 3, reason="needs two vector instruction sets")
@pytest.mark.parametrize("name", [name for name in ALL if name != "BF16"])
def test_vector_instruction_sets_agree(name: str) -> None:
    """All but BF16, for which AVX-512 has a product of its own."""
    weight = packed(name, 40, K)
    x = draw(6, K)
    first, second = ISAS[:2]
    one = multiply(weight, first, activations(weight, first, x))
    two = multiply(weight, second, activations(weight, second, x))
    assert_same_bits(one, two)


def paired(weight: Packed, isa: str, x: Floats) -> Bytes:
    """Rows of x and, behind each, what int8 leaves over of it."""
    acts = aligned(2 * len(x), _native.act_row_bytes(weight.k))
    for row, first, rest in zip(x, acts[::2], acts[1::2], strict=True):
        _native.quantize_row(isa, row, first, rest)
    return acts


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", every(3, CODES + BOOKS))
def test_pairs_of_rows_are_added_up(name: str, isa: str) -> None:
    """What was left over is added to the row before it, with its bias and its residual."""
    n, rows = 40, 13
    weight = packed(name, n, K)
    x = draw(rows, K)
    acts = paired(weight, isa, x)
    bias, residual = draw(n, seed=1), draw(rows, n, seed=2)
    first, rest = (np.ascontiguousarray(acts[i::2]) for i in range(2))
    again = [aligned(*part.shape) for part in (first, rest)]
    again[0][:], again[1][:] = first, rest
    want = multiply(weight, isa, again[0], bias=bias, residual=residual)
    want = multiply(weight, isa, again[1], residual=want)
    out = np.full((rows, n), np.nan, np.float32)
    for rows_of, panels_of in [((0, 5), (0, 3)), ((5, 13), (2, 3)), ((5, 13), (0, 2))]:
        _native.matmul(
            isa, weight.format, weight.data, n, K, acts, out, bias, residual, *rows_of, *panels_of
        )
    assert_same_bits(out, want)
    # A product of floats is a hundredth as far away as with 8 bits alone.
    exact = x.astype(np.float64) @ weight.values.astype(np.float64).T + bias + residual
    near, far = (
        np.abs(out - exact).mean(),
        np.abs(
            multiply(weight, isa, again[0])
            - (x.astype(np.float64) @ weight.values.astype(np.float64).T)
        ).mean(),
    )
    assert near < far / 100
