"""Every decoder equals the `gguf` package bit for bit, or a scalar reading of the definition."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from gguf import quants

from strata.quant import ALL, BlockType, QuantError, by_gguf_id, by_name, dequantize, grid
from strata.quant.floats import e4m3_values

BLOCKS = 300


def random_blocks(row: BlockType, seed: int, blocks: int = BLOCKS) -> np.ndarray:
    """Random bytes reach every bit pattern, scales that are NaN, infinite or subnormal included."""
    raw = np.random.default_rng(seed).integers(0, 256, (blocks, row.nbytes), dtype=np.uint8)
    raw[0] = 0
    raw[1] = 255
    for place in range(min(row.nbytes - 1, 40)):  # a half-precision infinity at each byte in turn
        raw[2 + place, place : place + 2] = (0x00, 0x7C)
        raw[50 + place, place : place + 2] = (0x01, 0xFC)  # NaN
        raw[100 + place, place : place + 2] = (0x01, 0x80)  # smallest negative subnormal
    return raw


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), f"{np.count_nonzero(~same)} values differ"


PACKAGE_TYPES = [row for row in gguf.GGMLQuantizationType if row.name not in ("F32", "F16")]
PACKAGE_DECODERS = [row.name for row in PACKAGE_TYPES if row in quants._type_traits]


def test_the_package_decodes_what_we_think_it_does() -> None:
    assert len(PACKAGE_DECODERS) >= 24


@pytest.mark.parametrize("name", ["F32", "F16", *PACKAGE_DECODERS])
def test_equals_the_gguf_package(name: str) -> None:
    row = by_name(name)
    raw = random_blocks(row, seed=len(name))
    with np.errstate(all="ignore"):
        want = quants.dequantize(raw.reshape(-1), gguf.GGMLQuantizationType[name])
    assert_same_bits(dequantize(row, raw, (BLOCKS * row.elements,)), want.reshape(-1))


@pytest.mark.parametrize("kind", PACKAGE_TYPES, ids=lambda kind: kind.name)
def test_sizes_equal_the_gguf_package(kind: gguf.GGMLQuantizationType) -> None:
    row = by_gguf_id(int(kind))
    assert row.name == kind.name
    # The package says 40 bytes for Q8_1 (two float32); ggml's own block has two halves.
    want = (32, 36) if kind.name == "Q8_1" else gguf.GGML_QUANT_SIZES[kind]
    assert (row.elements, row.nbytes) == want


CODES = {"F64": "d", "I8": "b", "I16": "h", "I32": "i", "I64": "q"}
CODES |= {"U8": "B", "U16": "H", "U32": "I", "U64": "Q", "BOOL": "?"}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_plain_numbers(name: str, code: str) -> None:
    row = by_name(name)
    raw = random_blocks(row, seed=3)
    with np.errstate(all="ignore"):
        want = np.array([struct.unpack("<" + code, block)[0] for block in raw])
        want = want.astype(np.float32)
    assert_same_bits(dequantize(row, raw, (BLOCKS,)), want)
    assert row.integer == (name != "F64")


def scalar_q8_0(block: bytes, values_at: int, scale: str) -> list[np.float32]:
    d = np.float32(struct.unpack_from(scale, block)[0])
    return [d * np.float32(q) for q in struct.unpack_from(f"{len(block)}b", block)[values_at:]]


def test_q8_1_and_q8_k_against_their_definition() -> None:
    for name, at, end, scale in (("Q8_1", 4, 36, "<e"), ("Q8_K", 4, 260, "<f")):
        row = by_name(name)
        raw = random_blocks(row, seed=5)
        with np.errstate(all="ignore"):
            want = [scalar_q8_0(block.tobytes()[:end], at, scale) for block in raw]
        got = dequantize(row, raw, (BLOCKS, row.elements))
        assert_same_bits(got, np.array(want, dtype=np.float32))


def test_q1_0_and_q2_0_against_their_definition() -> None:
    for name, bits in (("Q1_0", 1), ("Q2_0", 2)):
        row = by_name(name)
        raw = random_blocks(row, seed=6)
        want = np.empty((BLOCKS, row.elements), dtype=np.float32)
        with np.errstate(all="ignore"):
            for i, block in enumerate(raw):
                d = np.float32(struct.unpack_from("<e", block.tobytes())[0])
                for j in range(row.elements):
                    field = int(block[2 + j * bits // 8]) >> (j * bits % 8) & ((1 << bits) - 1)
                    want[i, j] = d * np.float32(2 * field - 1 if bits == 1 else field - 1)
        assert_same_bits(dequantize(row, raw, want.shape), want)


def scalar_e4m3(code: int) -> float:
    sign = -1.0 if code & 128 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def test_f8_e4m3_and_its_scaled_block() -> None:
    values = np.array([scalar_e4m3(code) for code in range(256)], dtype=np.float32)
    codes = np.arange(256, dtype=np.uint8)
    assert_same_bits(dequantize(by_name("F8_E4M3"), codes, (256,)), values)
    assert e4m3_values()[0x7E] == 448
    raw = random_blocks(by_name("F8_E4M3_B128"), seed=7)
    with np.errstate(all="ignore"):
        want = raw[:, :4].copy().view(np.float32) * values[raw[:, 4:]]
    assert_same_bits(dequantize(by_name("F8_E4M3_B128"), raw, (BLOCKS, 128)), want)


def test_f8_e5m2_is_a_cut_half() -> None:
    codes = np.arange(256, dtype=np.uint8)
    want = np.array([struct.unpack("<e", bytes((0, code)))[0] for code in codes], dtype=np.float32)
    assert_same_bits(dequantize(by_name("F8_E5M2"), codes, (256,)), want)


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_codebooks_equal_the_gguf_package(name: str) -> None:
    cls = getattr(quants, name)
    cls.init_grid()
    table = grid(name)
    np.testing.assert_array_equal(table, cls.grid.reshape(cls.grid_shape))
    assert table.dtype == (np.int8 if name == "IQ1_S" else np.uint8)
    assert not table.flags.writeable
    assert table.flags.c_contiguous


def test_small_tables_equal_the_gguf_package() -> None:
    assert grid("SIGNS").tobytes() == quants.IQ2_XXS.ksigns
    assert tuple(grid("IQ4_NL")) == quants.IQ4_NL.kvalues
    assert tuple(grid("MXFP4")) == quants.MXFP4.kvalues
    with pytest.raises(QuantError, match="IQ9"):
        grid("IQ9")


def test_names_and_numbers_are_unique() -> None:
    assert len({row.name for row in ALL}) == len(ALL)
    numbers = [row.gguf_id for row in ALL if row.gguf_id is not None]
    assert len(set(numbers)) == len(numbers)
    assert all(by_name(row.name) is row for row in ALL)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
def test_long_tensors_equal_their_blocks(row: BlockType) -> None:
    """Decoding goes in chunks; chunk borders must not show."""
    blocks = (1 << 16) // row.elements * 2 + 3
    one = random_blocks(row, seed=8)
    raw = np.resize(one, (blocks, row.nbytes))
    got = dequantize(row, raw, (blocks, row.elements))
    want = dequantize(row, one, (BLOCKS, row.elements))
    assert_same_bits(got, np.resize(want, got.shape))


def test_wrong_sizes_are_refused() -> None:
    row = by_name("Q4_0")
    with pytest.raises(QuantError, match="32 values in a block"):
        row.tensor_nbytes((3, 33))
    with pytest.raises(QuantError, match="takes 36 bytes"):
        dequantize(row, np.zeros(35, dtype=np.uint8), (2, 32))
    with pytest.raises(QuantError, match="float32"):
        dequantize(by_name("I8"), np.zeros(4, dtype=np.float32), (4,))
    with pytest.raises(QuantError, match="no block format 'Q4_7'"):
        by_name("Q4_7")
    with pytest.raises(QuantError, match="99"):
        by_gguf_id(99)
    assert dequantize(row, np.zeros(0, dtype=np.uint8), (0, 32)).shape == (0, 32)
