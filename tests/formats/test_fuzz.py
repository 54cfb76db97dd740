"""Mutated files: a model or a named error, nothing else, and no memory beyond the file's size."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from strata.errors import StrataError
from strata.formats import open_model
from strata.quant import dequantize
from support.model_bytes import entry, small_gguf, small_safetensors, write_directory
from support.model_bytes import safetensors as safetensors_bytes

INTERESTING = [0, 1, 2, 7, 8, 9, 13, 31, 32, 33, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1]
INTERESTING += [
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]
JSON_WORDS = [
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"-1",
    b"1e999",
    b"NaN",
    b'""',
    b"99999999999999999999",
]
JSON_WORDS += [b"0.5", b'"x":', b"[[", b"}", b'"\\ud800"', b"\xff", b"F8_E4M3", b"BF16", b"I64"]
# A million take half an hour for each kind of file: STRATA_TEST_MUTATIONS=1000000.
MUTATIONS = int(os.environ.get("STRATA_TEST_MUTATIONS", "5000"))
# Python objects for a header's entries are larger than their text; both are bounded by the file.
MEMORY_FLOOR, MEMORY_PER_BYTE = 1 << 19, 64


def mutate(raw: bytes, rng: np.random.Generator, words: list[bytes]) -> bytes:
    """One to three random changes: a bit, a byte, a number, a word, a cut, a copy."""
    out = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(out) + 1))
        kind = rng.integers(0, 7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and at < len(out):
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            number = struct.pack("<Q", INTERESTING[rng.integers(0, len(INTERESTING))])
            width = int(rng.choice([1, 2, 4, 8]))
            out[at : at + width] = number[:width]
        elif kind == 3 and words:
            word = words[rng.integers(0, len(words))]
            out[at : at + int(rng.integers(0, len(word) + 1))] = word
        elif kind == 4:
            del out[at : at + int(rng.integers(1, 40))]
        elif kind == 5:
            out[at:at] = out[at : at + int(rng.integers(1, 80))]
        else:
            del out[at:]
    return bytes(out)


def open_and_read(path: Path) -> bool:
    """Everything a loader does; False if the model was refused with a line."""
    try:
        with open_model(path) as model:
            for key in model.metadata:
                assert model.metadata[key] is not ...
            for name, info in model.tensors.items():
                raw = model.read(name)
                assert raw.nbytes == info.nbytes
                dequantize(info.type, raw, info.shape)
    except StrataError as error:
        message = str(error)
    else:
        return True
    assert message
    assert "\n" not in message
    return False


def peak_of_reading(path: Path) -> tuple[bool, int]:
    """Whether the model was read, and the bytes that reading took at most."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    return open_and_read(path), tracemalloc.get_traced_memory()[1] - before


def fuzz(path: Path, target: Path, words: list[bytes], rounds: int, seed: int) -> tuple[int, int]:
    """Mutate the file `path` of the model `target`; returns how often it was read and refused."""
    original = path.read_bytes()
    rng = np.random.default_rng(seed)
    assert open_and_read(target)  # caches (grids, tables) are filled before memory is counted
    counts = [0, 0]
    tracemalloc.start()
    try:
        for _ in range(rounds):
            raw = mutate(original, rng, words)
            path.write_bytes(raw)
            most = MEMORY_FLOOR + MEMORY_PER_BYTE * len(raw)
            fine, peak = peak_of_reading(target)
            if peak >= most:
                # The interpreter's table of interned strings grows at some time, by megabytes where
                # much is imported; what a file takes, it takes each time.
                fine, peak = peak_of_reading(target)
            counts[not fine] += 1
            assert peak < most, raw
    finally:
        tracemalloc.stop()
        path.write_bytes(original)
    return counts[0], counts[1]


def gguf_target(directory: Path) -> tuple[Path, Path]:
    path = directory / "m.gguf"
    path.write_bytes(b"".join(small_gguf()))
    return path, path


def safetensors_target(directory: Path) -> tuple[Path, Path]:
    path = write_directory(directory / "m", {"model.safetensors": small_safetensors()})
    return path / "model.safetensors", path


def fp8_target(directory: Path) -> tuple[Path, Path]:
    header = {
        "w": entry("F8_E4M3", [2, 256], 0, 512),
        "w_scale_inv": entry("F32", [1, 2], 512, 520),
    }
    raw = safetensors_bytes(header, bytes(520))
    path = write_directory(directory / "m", {"model.safetensors": raw})
    return path / "model.safetensors", path


def index_target(directory: Path) -> tuple[Path, Path]:
    shards = {
        f"{name}.safetensors": safetensors_bytes({name: entry("F32", [2], 0, 8)}, bytes(8))
        for name in "ab"
    }
    index = {"metadata": {"total_size": 16}, "weight_map": {name[0]: name for name in shards}}
    files = {"model.safetensors.index.json": index, **shards}
    path = write_directory(directory / "m", files)
    return path / "model.safetensors.index.json", path


def config_target(directory: Path) -> tuple[Path, Path]:
    config = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "a": [1, 2]}
    path = write_directory(directory / "m", {"model.safetensors": small_safetensors()}, config)
    return path / "config.json", path


TARGETS = [gguf_target, safetensors_target, fp8_target, index_target, config_target]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_mutations(target: type, tmp_path: Path) -> None:
    words = [] if target is gguf_target else JSON_WORDS
    read, refused = fuzz(*target(tmp_path), words, rounds=600, seed=11)
    # Both happen: mutations reach behind the checks, and checks find most of them.
    assert read > 5
    assert refused > 100


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_many_mutations(target: type, tmp_path: Path) -> None:
    words = [] if target is gguf_target else JSON_WORDS
    fuzz(*target(tmp_path), words, rounds=MUTATIONS, seed=100)


def test_random_bytes_behind_a_true_beginning(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    path = tmp_path / "m.gguf"
    directory = write_directory(tmp_path / "m", {})
    for _ in range(300):
        noise = rng.integers(0, 256, int(rng.integers(0, 400)), dtype=np.uint8).tobytes()
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *rng.integers(0, 5, 2)) + noise)
        open_and_read(path)
        header = b'{"x":' + noise[: len(noise) // 2]
        raw = struct.pack("<Q", len(header)) + header + noise[len(noise) // 2 :]
        (directory / "model.safetensors").write_bytes(raw)
        assert not open_and_read(directory)


def test_many_small_entries_stay_in_proportion(tmp_path: Path) -> None:
    """The densest headers: names of a few bytes, tensors of no bytes, empty strings."""
    header = {f"{number:x}": entry("U8", [0], 0, 0) for number in range(5000)}
    raw = safetensors_bytes(json.dumps(header, separators=(",", ":")))
    directory = write_directory(tmp_path / "m", {"model.safetensors": raw})
    strings = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 100_000) + bytes(800_000)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + strings)
    for target, size in ((directory, len(raw)), (path, path.stat().st_size)):
        tracemalloc.start()
        try:
            assert open_and_read(target)
            assert tracemalloc.get_traced_memory()[1] < MEMORY_FLOOR + MEMORY_PER_BYTE * size
        finally:
            tracemalloc.stop()
