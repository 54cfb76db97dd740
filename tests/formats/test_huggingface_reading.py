"""Hugging Face directories: every dtype, shards, sidecars and scaled 8-bit weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from strata.formats import errors, open_model
from strata.quant import by_name, dequantize
from strata.quant.encode import encode_e4m3, quantize
from support.model_bytes import entry, write_directory
from support.model_bytes import safetensors as safetensors_bytes

DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "BOOL", "I64", "I32", "I16", "I8"]
DTYPES += ["U64", "U32", "U16", "U8"]
SHAPES = [(), (5,), (3, 4), (2, 3, 2), (0, 7), (1, 2, 1, 2, 1)]


def test_all_dtypes_equal_the_safetensors_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    header, data = {}, b""
    for name in DTYPES:
        for shape in SHAPES:
            nbytes = by_name(name).tensor_nbytes(shape)
            header[f"{name}.{shape}"] = entry(name, shape, len(data), len(data) + nbytes)
            data += rng.integers(0, 2 if name == "BOOL" else 256, nbytes, np.uint8).tobytes()
    raw = safetensors_bytes(header, data)
    write_directory(tmp_path / "m", {"model.safetensors": raw})
    with open_model(tmp_path / "m") as model:
        theirs = dict(safetensors.deserialize(raw))
        assert model.tensors.keys() == theirs.keys()
        for name, want in theirs.items():
            info = model.tensors[name]
            assert info.type.name == want["dtype"]
            assert list(info.shape) == want["shape"]
            assert model.read(name).tobytes() == bytes(want["data"])
            assert info.type.integer == (info.type.name[0] in "IUB" and info.type.name != "BF16")
        rows = model.read("F32.(3, 4)").reshape(3, 16)
        np.testing.assert_array_equal(model.read("F32.(3, 4)", (1, 3)), rows[1:].reshape(-1))
        assert model.read("F32.(0, 7)", (0, 0)).size == 0


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    arrays = {
        name: rng.integers(0, 2, (3, 5)).astype(name)
        for name in ("float64", "float32", "float16", "int64", "int8", "uint16", "bool")
    }
    raw = save(arrays, {"format": "np"})
    with open_model(write_directory(tmp_path / "m", {"model.safetensors": raw})) as model:
        assert model.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            assert model.read(name).tobytes() == array.tobytes()
            values = dequantize(model.tensors[name].type, model.read(name), (3, 5))
            np.testing.assert_array_equal(values, array.astype(np.float32))


def test_a_directory_and_its_sidecars(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "rope_theta": 1e4, "eos_token_id": [1, 2]}
    files = {
        "other-name.safetensors": safetensors_bytes({}),
        "tokenizer.json": {},
        "chat_template.jinja": b"{{ messages }}",
    }
    directory = write_directory(tmp_path / "m", files, config)
    with open_model(str(directory)) as model:
        assert model.kind == "huggingface"
        assert model.directory == directory
        assert model.metadata == config
        assert model.sidecar("tokenizer.json") == directory / "tokenizer.json"
        assert model.sidecar("chat_template.jinja") == directory / "chat_template.jinja"
        assert model.sidecar("generation_config.json") is None
        assert model.paths == (directory / "other-name.safetensors",)
        assert model.file_bytes == (directory / "other-name.safetensors").stat().st_size


def shard(names: dict[str, int]) -> bytes:
    header, position = {}, 0
    for name in names:
        header[name] = entry("U8", [4], position, position + 4)
        position += 4
    return safetensors_bytes(header, b"".join(bytes([value] * 4) for value in names.values()))


def test_shards(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    weight_map = {"a": first, "b": second, "c": first}
    files = {
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
        first: shard({"a": 1, "c": 3}),
        second: shard({"b": 2}),
        "consolidated.safetensors": shard({"a": 9}),
    }
    with open_model(write_directory(tmp_path / "m", files)) as model:
        assert {name: int(model.read(name)[0]) for name in model.tensors} == {
            "a": 1,
            "b": 2,
            "c": 3,
        }
        assert [path.name for path in model.paths] == [first, second]
        assert model.tensors["b"].path.name == second


def test_symbolic_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1234").write_bytes(shard({"a": 1}))
    directory = write_directory(tmp_path / "snapshot", {})
    (directory / "model.safetensors").symlink_to("../blobs/1234")
    with open_model(directory) as model:
        assert model.read("a").tobytes() == b"\x01" * 4


def scaled_model(
    directory: Path, codes: np.ndarray, scale: np.ndarray, scale_type: str, suffix: str
) -> Path:
    packed = quantize(by_name(scale_type), scale.reshape(1, -1)).tobytes()
    header: dict[str, Any] = {
        "m.weight": entry("F8_E4M3", list(codes.shape), 0, codes.size),
        f"m.weight{suffix}": entry(
            scale_type, list(scale.shape), codes.size, codes.size + len(packed)
        ),
    }
    raw = safetensors_bytes(header, codes.tobytes() + packed)
    return write_directory(directory, {"model.safetensors": raw})


N, K = 600, 384
SCALE_SHAPES = {
    "squares": (-(-N // 128), K // 128),
    "rows": (N, 1),
    "rows, flat": (N,),
    "one": (1,),
    "scalar": (),
    "one by one": (1, 1),
}


@pytest.mark.parametrize("kind", SCALE_SHAPES)
@pytest.mark.parametrize("scale_type", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_scaled_8_bit_weights_are_one_tensor(
    kind: str, scale_type: str, suffix: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    codes = encode_e4m3(rng.standard_normal((N, K)).astype(np.float32) * 50)
    shape = SCALE_SHAPES[kind]
    # Powers of two and their halves again are exact in every type of scale.
    scale = np.ldexp(rng.integers(2, 4, shape) / 2, rng.integers(-9, -4, shape)).astype(np.float32)
    if kind == "squares":
        full = np.repeat(np.repeat(scale, 128, axis=0)[:N], 128, axis=1)
    else:
        full = np.broadcast_to(scale.reshape(-1, 1), (N, K))
    want = full * dequantize(by_name("F8_E4M3"), codes, (N, K))
    with open_model(scaled_model(tmp_path / "m", codes, scale, scale_type, suffix)) as model:
        assert list(model.tensors) == ["m.weight"]
        info = model.tensors["m.weight"]
        assert info.type.name == "F8_E4M3_B128"
        assert info.shape == (N, K)
        assert model.nbytes == info.nbytes == N * K // 128 * 132
        raw = model.read("m.weight")
        np.testing.assert_array_equal(dequantize(info.type, raw, info.shape), want)
        rows = raw.reshape(N, -1)
        for first, last in ((0, 1), (127, 129), (100, 500), (599, 600), (7, 7), (0, 600)):
            part = model.read("m.weight", (first, last))
            np.testing.assert_array_equal(part, rows[first:last].reshape(-1))


def test_a_scale_may_be_in_another_shard(tmp_path: Path) -> None:
    codes = np.arange(128, dtype=np.uint8)
    files = {
        "model.safetensors.index.json": {
            "weight_map": {"w": "a.safetensors", "w_scale_inv": "b.safetensors"}
        },
        "a.safetensors": safetensors_bytes(
            {"w": entry("F8_E4M3", [1, 128], 0, 128)}, codes.tobytes()
        ),
        "b.safetensors": safetensors_bytes(
            {"w_scale_inv": entry("F32", [1, 1], 0, 4)}, np.float32(0.5).tobytes()
        ),
    }
    with open_model(write_directory(tmp_path / "m", files)) as model:
        raw = model.read("w")
        assert raw[:4].view(np.float32)[0] == 0.5
        np.testing.assert_array_equal(raw[4:], codes)


def test_what_is_not_a_scaled_8_bit_weight_stays(tmp_path: Path) -> None:
    header = {
        "plain": entry("F8_E4M3", [4], 0, 4),
        "half": entry("F16", [4], 4, 12),
        "half_scale": entry("F32", [1], 12, 16),
    }
    raw = safetensors_bytes(header, bytes(16))
    with open_model(write_directory(tmp_path / "m", {"model.safetensors": raw})) as model:
        assert set(model.tensors) == set(header)
        assert model.tensors["plain"].type.name == "F8_E4M3"


def test_declared_blocks_of_128_are_accepted(tmp_path: Path) -> None:
    directory = scaled_model(
        tmp_path / "m",
        np.zeros((4, 256), np.uint8),
        np.ones((1, 2), np.float32),
        "F32",
        "_scale_inv",
    )
    declared = {"quantization_config": {"weight_block_size": [128, 128]}}
    (directory / "config.json").write_text(json.dumps(declared))
    with open_model(directory) as model:
        assert model.tensors["m.weight"].type.name == "F8_E4M3_B128"


def test_a_large_config_is_refused(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "m", {"model.safetensors": safetensors_bytes({})})
    with (directory / "config.json").open("wb") as config:
        config.truncate(200_000_000)
    with pytest.raises(errors.HeaderTooLargeError, match="at most"):
        open_model(directory)
