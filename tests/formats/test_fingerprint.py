"""Models told apart by their content."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from strata.formats import open_model
from strata.formats.fingerprint import PIECE_BYTES, fingerprint
from support.model_bytes import (
    entry,
    gguf,
    safetensors,
    tensor,
    u32_key,
    write_directory,
)


def of(path: Path) -> str:
    with open_model(path) as file:
        return fingerprint(file)


@pytest.fixture(scope="module")
def original(smollm2_path: Path) -> str:
    return of(smollm2_path)


def test_a_copy_is_the_same_model(smollm2_path: Path, tmp_path: Path, original: str) -> None:
    copy = tmp_path / "another name.gguf"
    shutil.copyfile(smollm2_path, copy)
    os.utime(copy, (0, 0))
    assert of(copy) == original


def test_other_weights_or_another_header_are_another_model(
    smollm2_path: Path, tmp_path: Path, original: str
) -> None:
    copy = tmp_path / "model.gguf"
    with open_model(smollm2_path) as file:
        tensors = list(file.tensors.values())
    random = np.random.default_rng(0)
    for info in (tensors[0], tensors[len(tensors) // 2], tensors[-1]):
        shutil.copyfile(smollm2_path, copy)
        with open(copy, "r+b") as f:
            f.seek(info.offset)
            f.write(random.bytes(info.nbytes))
        assert of(copy) != original
    shutil.copyfile(smollm2_path, copy)
    data = smollm2_path.read_bytes()
    at = data.index(b"llama.rope.freq_base") + len(b"llama.rope.freq_base") + 4
    with open(copy, "r+b") as f:
        f.seek(at)
        f.write(np.float32(12345).tobytes())
    assert of(copy) != original


def flip(path: Path, place: int) -> None:
    """Change one bit and put the time of the last change back."""
    times = path.stat()
    with open(path, "r+b") as f:
        f.seek(place)
        byte = f.read(1)[0]
        f.seek(place)
        f.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_any_byte_that_changes_makes_another_model(
    smollm2_path: Path, tmp_path: Path, original: str
) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_path, copy)
    random = np.random.default_rng(0)
    with open_model(copy) as file:
        tensors = sorted(file.tensors.values(), key=lambda info: info.offset)
        size = file.file_bytes
    inside = int(random.integers(tensors[0].offset, size))
    seen = {original}
    for place in (inside, size - 1, tensors[-1].offset - 1, PIECE_BYTES):
        flip(copy, place)
        seen.add(of(copy))
        flip(copy, place)
    assert len(seen) == 5
    assert of(copy) == original


def test_every_byte_of_every_part_counts(tmp_path: Path) -> None:
    for number in range(3):
        keys = [u32_key("split.no", number), u32_key("split.count", 3)]
        keys += [u32_key("split.tensors.count", 3)]
        raw = gguf(keys, [tensor(f"t{number}")], bytes([number]) * 32)
        (tmp_path / f"a-{number + 1:05d}-of-00003.gguf").write_bytes(raw)
    parts = sorted(tmp_path.iterdir())
    original = of(parts[0])
    assert of(parts[2]) == original
    for path in parts:
        for place in range(path.stat().st_size - 32, path.stat().st_size):
            flip(path, place)
            assert of(parts[0]) != original
            flip(path, place)
    assert of(parts[0]) == original


def test_every_byte_of_a_directory_counts(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    contents: dict[str, bytes | object] = {
        name: safetensors({f"t{i}": entry("F32", (8,), 0, 32)}, bytes([i]) * 32)
        for i, name in enumerate(names)
    }
    contents["model.safetensors.index.json"] = {"weight_map": {"t0": names[0], "t1": names[1]}}
    contents["tokenizer.json"] = {"model": {"vocab": {"a": 0}}}
    contents["tokenizer_config.json"] = {}
    contents["README.md"] = b"Not of the model."
    directory = write_directory(tmp_path / "m", contents)
    original = of(directory)
    for name in names:
        size = (directory / name).stat().st_size
        for place in range(size - 32, size):
            flip(directory / name, place)
            assert of(directory) != original
            flip(directory / name, place)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        raw = (directory / name).read_bytes()
        (directory / name).write_bytes(raw + b" ")
        assert of(directory) != original
        (directory / name).write_bytes(raw)
    (directory / "merges.txt").write_text("a b")
    assert of(directory) != original
    (directory / "merges.txt").unlink()
    (directory / "README.md").write_text("Still not of the model.")
    assert of(directory) == original


def test_it_takes_little_memory_and_says_how_far_it_is(smollm2_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with open_model(smollm2_path) as file:
        tracemalloc.start()
        fingerprint(file, None, lambda _, done, total: seen.append((done, total)), drop_cached=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen[-1] == (file.file_bytes, file.file_bytes)
        assert seen == sorted(seen)
    assert peak < 4 << 20


def test_every_byte_more_counts(smollm2_path: Path, tmp_path: Path, original: str) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_path, copy)
    with open(copy, "ab") as f:
        f.write(b"\0")
    assert of(copy) != original
