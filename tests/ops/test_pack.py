"""Packed weights hold the file's numbers, whoever packs which panels."""

from __future__ import annotations

import numpy as np
import pytest

from strata import _native
from strata.quant import by_name, dequantize
from support.native_weights import (
    ALL,
    BOOKS,
    CODES,
    ISAS,
    assert_same_bits,
    file_rows,
    number_of,
    packed,
)


@pytest.mark.parametrize("name", ALL)
def test_rows_come_back_bit_for_bit(name: str) -> None:
    block = by_name(name).elements
    for n, k in ((1, block), (16, 2 * block), (37, 7 * block)):
        weight = packed(name, n, k, seed=n)
        out = np.empty(k, np.float32)
        for row in range(n):
            _native.unpack_row(ISAS[0], weight.format, weight.data, n, row, out)
            assert_same_bits(out, weight.values[row])


@pytest.mark.parametrize("name", CODES + BOOKS)
def test_any_bytes_come_back(name: str) -> None:
    """Every bit of codes and scales has its place, NaN and infinite scales included."""
    kind = by_name(name)
    n, k = 32, 4 * kind.elements
    raw = np.random.default_rng(3).integers(0, 256, n * 4 * kind.nbytes, dtype=np.uint8)
    number = number_of(kind)
    data = np.zeros(_native.packed_bytes(number, n, k), np.uint8)
    _native.pack(number, raw, n, k, data)
    want = dequantize(kind, raw, (n, k))
    out = np.empty(k, np.float32)
    for row in range(n):
        _native.unpack_row(ISAS[0], number, data, n, row, out)
        nan = np.isnan(want[row])
        assert np.array_equal(np.isnan(out), nan)
        assert_same_bits(np.where(nan, np.float32(0), out), np.where(nan, np.float32(0), want[row]))


@pytest.mark.parametrize("name", ALL)
def test_packed_size_is_the_file_size_of_whole_panels(name: str) -> None:
    kind = by_name(name)
    k = 2 * kind.elements
    size = _native.packed_bytes(number_of(kind), 64, k)
    file = kind.tensor_nbytes((64, k))
    if name == "IQ4_XS":
        assert file < size <= 1.02 * file
    else:
        assert size == (file // 2 if name == "F64" else file)


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "F32", "BF16", "TQ1_0"])
def test_panels_are_packed_independently(name: str) -> None:
    n, k = 70, 512
    weight = packed(name, n, k)
    rows = file_rows(name, n, k)
    data = np.full_like(weight.data, 0xAA)
    for panel in (3, 0, 4, 2, 1):
        before = data.copy()
        _native.pack(weight.format, rows, n, k, data, panel0=panel, panel1=panel + 1)
        share = _native.packed_bytes(weight.format, 16, k)
        changed = np.flatnonzero(before != data) // share
        assert set(changed) <= {panel}
    assert np.array_equal(data, weight.data)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
@pytest.mark.parametrize("name", ALL)
def test_vectors_pack_the_same_bytes(name: str, isa: str) -> None:
    """Any bytes, rows that begin anywhere, widths and heights with remainders."""
    kind = by_name(name)
    number = number_of(kind)
    rng = np.random.default_rng(5)
    widths = (7, 8, 40, 1000) if kind.elements == 1 else (kind.elements, 5 * kind.elements)
    for n in (1, 15, 16, 37, 64):
        for k in widths:
            nbytes = kind.tensor_nbytes((n, k))
            rows = rng.integers(0, 256, nbytes + 3, dtype=np.uint8)[3:]
            size = _native.packed_bytes(number, n, k)
            outs = []
            for by in ("scalar", isa):
                room = np.full(size + 192, 0xAA, np.uint8)
                _native.pack(number, rows, n, k, room[64 : 64 + size], isa=by)
                assert (room[:64] == 0xAA).all()
                assert (room[64 + size :] == 0xAA).all()
                outs.append(room)
            assert np.array_equal(*outs), (n, k)
