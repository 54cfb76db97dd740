"""GGUF files read like the `gguf` package reads them, and what we write it can read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.formats import errors, open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.quant import ALL, by_name
from support.model_bytes import gguf as gguf_bytes
from support.model_bytes import string_key, tensor, u32_key

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a.u8": np.uint8(200),
    "a.i8": np.int8(-100),
    "a.u16": np.uint16(60000),
    "a.i16": np.int16(-30000),
    "a.u32": np.uint32(4_000_000_000),
    "a.i32": np.int32(-2_000_000_000),
    "a.f32": np.float32(0.1),
    "a.bool": True,
    "a.text": "schöner Text\nmit Zeilen",
    "a.u64": np.uint64(2**64 - 1),
    "a.i64": np.int64(-(2**63)),
    "a.f64": np.float64(0.1),
    "a.small": 3,
    "a.negative": -3,
    "a.large": 2**40,
    "a.fraction": 0.25,
    "b.tokens": ["a", "", "é", "日本", "👩‍👩‍👧"],
    "b.scores": [0.5, -1.5],
    "b.kinds": [1, 2, -3],
    "b.flags": [True, False],
    "b.words": np.arange(5, dtype=np.uint64),
    "b.none": np.array([], dtype=np.float64),
}


def in_package(row: Any) -> bool:
    """Q8_1 is left out because the package takes its block for 40 bytes; no file holds it."""
    names = [kind.name for kind in gguf.GGMLQuantizationType]
    return row.name in names and row.name != "Q8_1"


def sources() -> list[TensorSource]:
    """A tensor of every type, of one to four axes."""
    rng = np.random.default_rng(1)
    out = []
    for index, row in enumerate(row for row in ALL if in_package(row)):
        shape = ((3, row.elements * 2), (row.elements,), (2, 3, row.elements), (1, 2, 1, 256))
        chosen = shape[index % 4]
        raw = rng.integers(0, 256, row.tensor_nbytes(chosen), dtype=np.uint8)
        out.append(TensorSource.of(f"t.{row.name}", chosen, row, raw))
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, METADATA, sources())
    return path


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def test_tensors_equal_the_gguf_package(written: Path) -> None:
    reader = gguf.GGUFReader(written)
    with open_model(written) as model:
        assert model.kind == "gguf"
        assert list(model.tensors) == [tensor.name for tensor in reader.tensors]
        for want in reader.tensors:
            info = model.tensors[want.name]
            assert info.type.name == want.tensor_type.name
            assert info.shape == tuple(reversed(want.shape.tolist()))
            assert (info.offset, info.nbytes) == (want.data_offset, want.n_bytes)
            assert model.read(want.name).tobytes() == want.data.tobytes()
        assert model.nbytes == sum(info.nbytes for info in model.tensors.values())
        assert model.file_bytes == written.stat().st_size
        assert model.paths == (written,)


def test_metadata_equals_the_gguf_package(written: Path) -> None:
    reader = gguf.GGUFReader(written)
    with open_model(written) as model:
        assert list(model.metadata) == list(METADATA)
        for key, want in METADATA.items():
            field = reader.get_field(key)
            assert field is not None
            if key != "b.none":  # the package fails on empty arrays
                assert plain(model.metadata[key]) == plain(field.contents()), key
            expected = np.float32(want) if type(want) is float else want
            assert plain(model.metadata[key]) == plain(expected), key
        types = {key: reader.get_field(key).types[0].name for key in METADATA}
        assert types["a.small"] == "UINT32"
        assert types["a.negative"] == "INT32"
        assert types["a.large"] == "UINT64"
        for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"):
            name = {"u": "UINT", "i": "INT"}[kind[0]] + kind[1:]
            assert types[f"a.{kind}"] == name


def test_files_of_the_gguf_package_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["<s>", "▁a", b"\xff\xfe"])
    writer.add_custom_alignment(64)
    weights = np.random.default_rng(2).standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("f32", weights)
    writer.add_tensor("f16", weights.astype(np.float16))
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_model(path) as model:
        assert model.metadata["llama.block_count"] == 2
        assert model.metadata["tokenizer.ggml.tokens"] == ["<s>", "▁a", "\udcff\udcfe"]
        assert all(info.offset % 64 == 0 for info in model.tensors.values())
        assert model.read("f32").tobytes() == weights.tobytes()
        assert model.read("f16").tobytes() == weights.astype(np.float16).tobytes()
        assert model.read("q8").tobytes() == packed.tobytes()
        assert model.tensors["q8"].shape == (6, 64)


def test_version_2_is_read(written: Path, tmp_path: Path) -> None:
    raw = bytearray(written.read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    old = tmp_path / "old.gguf"
    old.write_bytes(raw)
    with open_model(old) as two, open_model(written) as three:
        assert two.tensors.keys() == three.tensors.keys()
        assert two.read("t.Q4_K").tobytes() == three.read("t.Q4_K").tobytes()


def test_rows(written: Path) -> None:
    with open_model(written) as model:
        for name, info in model.tensors.items():
            whole = model.read(name)
            if len(info.shape) == 1:
                continue
            rows = whole.reshape(info.shape[0], -1)
            for first in range(info.shape[0] + 1):
                for last in range(first, info.shape[0] + 1):
                    part = model.read(name, (first, last))
                    np.testing.assert_array_equal(part, rows[first:last].reshape(-1))
        buffer = np.empty(model.tensors["t.F32"].nbytes, dtype=np.uint8)
        model.readinto("t.F32", buffer)
        np.testing.assert_array_equal(buffer, model.read("t.F32"))


def test_wrong_reads_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(
        path,
        {},
        [
            TensorSource.of("w", (4, 32), by_name("Q8_0"), np.arange(136, dtype=np.uint8)),
            TensorSource.of("v", (96,), by_name("Q8_0"), np.arange(102, dtype=np.uint8)),
        ],
    )
    with open_model(path) as model:
        with pytest.raises(errors.TensorNameError, match="'absent'"):
            model.read("absent")
        for rows in ((-1, 2), (2, 1), (0, 5), (5, 5)):
            with pytest.raises(errors.RowRangeError):
                model.read("w", rows)
        with pytest.raises(errors.RowRangeError, match="cuts a block"):
            model.read("v", (0, 33))
        np.testing.assert_array_equal(model.read("v", (32, 96)), model.read("v")[34:])
        read_only = np.zeros(136, dtype=np.uint8)
        read_only.flags.writeable = False
        strided = np.empty(272, dtype=np.uint8)[::2]
        for buffer in (np.empty(135, dtype=np.uint8), np.empty(34, np.float32), strided, read_only):
            with pytest.raises(errors.RowRangeError, match="contiguous"):
                model.readinto("w", buffer)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(errors.ShortReadError, match="download or copy"):
            model.read("v")
    with pytest.raises(errors.ClosedError):
        model.read("w")
    model.close()


def test_a_vocabulary_without_tensors_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf_bytes([string_key("general.architecture", "llama")]))
    with open_model(path) as model:
        assert not model.tensors
        assert model.nbytes == 0
        assert model.metadata["general.architecture"] == "llama"
        assert "absent" not in model.metadata
        assert model.sidecar("tokenizer.json") is None


def test_parts_are_found_from_each_of_them(tmp_path: Path) -> None:
    count, names = 3, []
    for number in range(count):
        keys = [u32_key("split.no", number), u32_key("split.count", count)]
        keys += [u32_key("split.tensors.count", count)]
        keys += [string_key("general.name", "whole")] if number == 0 else []
        names.append(f"a-00009-of-00009-{number + 1:05d}-of-{count:05d}.gguf")
        raw = gguf_bytes(keys, [tensor(f"t{number}")], bytes([number]) * 32)
        (tmp_path / names[-1]).write_bytes(raw)
    for name in names:
        with open_model(tmp_path / name) as model:
            assert model.metadata["general.name"] == "whole"
            assert [path.name for path in model.paths] == names
            for number in range(count):
                assert model.read(f"t{number}").tobytes() == bytes([number]) * 32


def test_gaps_between_tensors_are_allowed(tmp_path: Path) -> None:
    """The specification asks for alignment and order only; tensors need not touch."""
    path = tmp_path / "gaps.gguf"
    path.write_bytes(gguf_bytes([], [tensor("b", offset=128), tensor("a")], bytes(32) + b"x" * 128))
    with open_model(path) as model:
        assert list(model.tensors) == ["b", "a"]
        assert model.read("b").tobytes() == b"x" * 32


def test_scalars_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "scalar.gguf"
    path.write_bytes(gguf_bytes([], [tensor("s", ())], struct.pack("<f", 2.5)))
    with open_model(path) as model:
        assert model.tensors["s"].shape == ()
        assert model.read("s").view(np.float32)[0] == 2.5
        with pytest.raises(errors.RowRangeError):
            model.read("s", (0, 1))


TEXT = st.text(st.characters(exclude_categories=()), max_size=12).filter(
    lambda text: not any("\ud800" <= char <= "\udfff" for char in text)
)
VALUES = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(TEXT, min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(metadata=st.dictionaries(TEXT.filter(bool), VALUES, max_size=6))
def test_any_metadata_comes_back(
    metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    metadata.pop("general.alignment", None)
    metadata.pop("split.count", None)
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    write_gguf(path, metadata, [])
    with open_model(path) as model:
        assert {key: plain(value) for key, value in model.metadata.items()} == metadata
