"""Opening reads headers only, of files far larger than memory, and no vocabulary token by token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from strata.formats import open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.quant import by_name
from support.model_bytes import entry, gguf_parts, safetensors, tensor, write_directory

# ru_maxrss of a process started by a large one is the large one's: the child reads VmHWM instead.
MEASURE = """
import json, sys
from strata.formats import open_model
def read():
    with open("/proc/self/io") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("rchar:"))
before = read()
with open_model(sys.argv[1]) as model:
    opened = read() - before
    last = list(model.tensors)[-1]
    model.read(last, (0, 1))
    names = len(model.tensors)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
result = {"read": opened, "peak": peak, "tensors": names, "bytes": model.file_bytes}
print(json.dumps(result))
"""
LAYERS, ROWS, COLUMNS = 100, 2**16, 2**16  # 100 F8-sized layers of 4 GiB: 400 GiB
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)


def measure(path: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", MEASURE, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def sparse(path: Path, start: bytes, size: int) -> None:
    path.write_bytes(start)
    try:
        os.truncate(path, size)
    except OSError as error:
        pytest.skip(f"this file system has no sparse file of {size} bytes: {error}")


def check(measured: dict[str, float]) -> None:
    assert measured["tensors"] == LAYERS
    assert measured["bytes"] > 400e9
    assert measured["read"] < 1e6
    assert measured["peak"] < 100e6


@needs_proc
def test_a_gguf_of_400_gb(tmp_path: Path) -> None:
    nbytes = ROWS * COLUMNS
    entries = [tensor(f"t{i}", (COLUMNS, ROWS), 24, i * nbytes) for i in range(LAYERS)]
    head = b"".join(gguf_parts([], entries, b"\0")[:-1])
    sparse(tmp_path / "m.gguf", head, len(head) + LAYERS * nbytes)
    check(measure(tmp_path / "m.gguf"))


@needs_proc
def test_a_directory_of_400_gb(tmp_path: Path) -> None:
    nbytes = ROWS * COLUMNS
    header = {
        f"t{i}": entry("I8", [ROWS, COLUMNS], i * nbytes, (i + 1) * nbytes) for i in range(LAYERS)
    }
    directory = write_directory(tmp_path / "m", {})
    head = safetensors(header)
    sparse(directory / "model.safetensors", head, len(head) + LAYERS * nbytes)
    check(measure(directory))


def test_a_large_vocabulary_is_not_walked_through(tmp_path: Path) -> None:
    count = 150_000
    metadata = {
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(count)],
        "tokenizer.ggml.merges": [f"left{i} right{i}" for i in range(count)],
        "tokenizer.ggml.token_type": np.ones(count, dtype=np.int32),
        "tokenizer.ggml.scores": np.zeros(count, dtype=np.float32),
    }
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, [])
    calls = 0

    def counted(_frame: object, _event: str, _argument: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(counted)
    try:
        model = open_model(path)
    finally:
        sys.setprofile(None)
    with model:
        # Whatever is done for each of so many tokens is done out of Python.
        assert calls < count / 10
        assert model.metadata["tokenizer.ggml.tokens"] == metadata["tokenizer.ggml.tokens"]


def test_threads_read_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    raw = rng.integers(0, 256, (512, 4096), dtype=np.uint8)
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [TensorSource.of("w", raw.shape, by_name("I8"), raw)])
    wrong: list[int] = []

    def read(model_rows: range) -> None:
        for row in model_rows:
            if not np.array_equal(model.read("w", (row, row + 1)), raw[row]):
                wrong.append(row)

    with open_model(path) as model:
        threads = [threading.Thread(target=read, args=(range(i, 512, 4),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
