"""Models told apart by their content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from strata.formats import open_model
from strata.formats.fingerprint import fingerprint


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


def test_every_byte_more_counts(smollm2_path: Path, tmp_path: Path, original: str) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_path, copy)
    with open(copy, "ab") as f:
        f.write(b"\0")
    assert of(copy) != original
