"""Weights in several files, apart from their scales, or on a file system without direct reads."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
from strata.formats import open_model
from strata.synth import SHAPES, write_model
from support.streaming import forward, logits, settings, units

TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 20)]


def test_split_gguf(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    writer = make_tiny_models._writer(golden, tmp_path / "m.gguf")
    writer.split_max_tensors = 5
    for name, array in make_tiny_models.gguf_arrays(golden).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 3
    (tmp_path / "whole").mkdir()
    whole = make_tiny_models.write_gguf(tmp_path / "whole" / "m.gguf", golden)
    with open_model(whole) as file:
        want = logits(file, None, TOKENS, golden.context)
    with open_model(parts[0]) as file:
        names = units(file, golden.context)
        assert logits(file, settings(names), TOKENS, golden.context).tobytes() == want.tobytes()


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Iterator[Mapping[str, Any]]:
    with open_model(smollm2_path) as file:
        yield dict(file.metadata)


def write_fp8(path: Path, tokenizer: Mapping[str, Any], scales: str) -> Path:
    """A model whose layers' matrices are random 8-bit floats, their scales for each square of 128,
    for each row, or one for all."""
    write_model(SHAPES["tiny-llama"], path, recipe=None, tokenizer=tokenizer)
    old = path / "model.safetensors"
    data = old.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    random = np.random.default_rng(7)
    entries: dict[str, Any] = {}
    chunks: list[bytes] = []

    def add(name: str, dtype: str, shape: list[int], raw: bytes) -> None:
        start = sum(map(len, chunks))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(raw)]}
        chunks.append(raw)

    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        n, k = (*entry["shape"], 0)[:2]
        if "layers" not in name or not k:
            add(name, entry["dtype"], entry["shape"], body[begin:end])
            continue
        # Every code but NaN, and small scales: finite activations.
        codes = random.integers(0, 0x7F, (n, k), np.uint8) | random.integers(
            0, 2, (n, k), np.uint8
        ) * np.uint8(0x80)
        add(name, "F8_E4M3", [n, k], codes.tobytes())
        shape = {"square": [-(-n // 128), k // 128], "row": [n, 1], "one": [1]}[scales]
        factors = random.uniform(1e-4, 3e-4, shape).astype("<f4")
        add(f"{name}_scale_inv", "F32", shape, factors.tobytes())
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    old.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    return path


@pytest.mark.parametrize("scales", ["square", "row", "one"])
def test_8_bit_floats_with_scales(
    tmp_path: Path, tokenizer: Mapping[str, Any], scales: str
) -> None:
    with open_model(write_fp8(tmp_path / "model", tokenizer, scales)) as file:
        assert any(info.type.name == "F8_E4M3_B128" for info in file.tensors.values())
        names = units(file)
        want = logits(file, None, TOKENS)
        assert np.isfinite(want).all()
        for request in (1, 100_000):
            how = settings(names, tile=1 << 18, request=request)
            assert logits(file, how, TOKENS).tobytes() == want.tobytes()


def test_where_there_are_no_direct_reads(smollm2_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shutil.disk_usage(shared).free < 1 << 29:
        pytest.skip("no /dev/shm with room for a model")
    copy = shared / "strata-test-model.gguf"
    try:
        shutil.copyfile(smollm2_path, copy)
        with open_model(copy) as file:
            want = logits(file, None, TOKENS)
            how = settings(units(file), tile=1 << 20, request=1 << 18, direct=True)
            assert forward(file, how).logits(TOKENS).tobytes() == want.tobytes()
    finally:
        copy.unlink(missing_ok=True)
