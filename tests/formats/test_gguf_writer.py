"""The writer streams, and refuses what GGUF cannot hold before it leaves anything behind."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import errors, open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.quant import by_name

F32 = by_name("F32")


def zeros(name: str = "w", shape: tuple[int, ...] = (8,)) -> TensorSource:
    return TensorSource.of(name, shape, F32, np.zeros(shape, dtype=np.float32))


def test_a_tensor_is_written_piece_by_piece(tmp_path: Path) -> None:
    """48 MB pass through while less than 4 MB are held."""
    pieces, size = 48, 1 << 20

    def chunks() -> Iterator[np.ndarray]:
        for index in range(pieces):
            yield np.full(size, index, dtype=np.uint8)

    path = tmp_path / "large.gguf"
    tracemalloc.start()
    write_gguf(path, {"a": 1}, [TensorSource("w", (pieces, size // 4), F32, chunks), zeros("v")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    with open_model(path) as model:
        rows = model.read("w", (5, 7)).reshape(2, size)
        assert (rows == np.array([[5], [6]])).all()


class Full(io.FileIO):
    """A file on a disk that has only so many bytes of room for it."""

    room = 0

    def write(self, data: Any) -> int:
        left = self.room - os.fstat(self.fileno()).st_size
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(memoryview(data)[:left])


def test_nothing_counts_as_written_that_a_full_disk_has_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it becomes full, also at the end of a tensor, which is kept back for a moment."""
    values = np.arange(1, 2501, dtype=np.float32)
    tensors = [TensorSource.of(name, (2500,), F32, values) for name in "abc"]
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, {"a": 1}, tensors)

    real = Path.open

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".partial":
            return io.BufferedWriter(Full(path, "a"))
        return real(path, *args, **kwargs)

    for room in range(0, whole.stat().st_size, 1500):
        path = tmp_path / f"{room}.gguf"
        with monkeypatch.context() as patched:
            patched.setattr(Full, "room", room)
            patched.setattr(Path, "open", opened)
            with pytest.raises(errors.DiskFullError):
                write_gguf(path, {"a": 1}, tensors, job="j")
        write_gguf(path, {"a": 1}, tensors, job="j")
        assert path.read_bytes() == whole.read_bytes()


def test_alignment_is_kept_and_stated(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    write_gguf(path, {}, [zeros("a", (3,)), zeros("b", (5,))], alignment=256)
    with open_model(path) as model:
        assert model.metadata["general.alignment"] == 256
        assert all(info.offset % 256 == 0 for info in model.tensors.values())
    assert path.stat().st_size % 256 == 0


BAD_METADATA: list[Any] = [
    [],
    [1, "a"],
    [True, 1],
    None,
    2**64,
    -(2**63) - 1,
    np.zeros((2, 2), dtype=np.float32),
    np.zeros(2, dtype=np.complex64),
    {"a": 1},
    [[1]],
]


@pytest.mark.parametrize("value", BAD_METADATA, ids=repr)
def test_metadata_that_gguf_cannot_hold(value: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.WriteError, match=r"^some\.key: "):
        write_gguf(tmp_path / "m.gguf", {"some.key": value}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given_bytes", [0, 31, 33, 64])
def test_a_source_of_the_wrong_length_leaves_no_file(given_bytes: int, tmp_path: Path) -> None:
    data = np.zeros(given_bytes, dtype=np.uint8)
    with pytest.raises(errors.WriteError, match="takes 32 bytes"):
        write_gguf(tmp_path / "m.gguf", {}, [TensorSource("w", (8,), F32, lambda: (data,))])
    assert not list(tmp_path.iterdir())


def test_a_failing_source_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"a": 1}, [])

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(16, dtype=np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, {"a": 2}, [TensorSource("w", (8,), F32, broken)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]
    with open_model(path) as model:
        assert model.metadata["a"] == 1


def test_tensors_that_gguf_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for sources, words in (
        ([zeros(), zeros()], "same name"),
        ([zeros(shape=(1, 1, 1, 1, 1))], "up to 4 axes"),
        ([zeros(shape=(0, 3))], "length zero"),
        ([TensorSource.of("w", (8,), by_name("U8"), np.zeros(8, np.uint8))], "no type U8"),
    ):
        with pytest.raises(errors.WriteError, match=words):
            write_gguf(path, {}, sources)
    with pytest.raises(errors.WriteError, match="power of two"):
        write_gguf(path, {}, [], alignment=48)
    with pytest.raises(errors.WriteError, match="cannot be written"):
        write_gguf(tmp_path / "absent" / "m.gguf", {}, [])
    assert not path.exists()


def test_a_full_disk_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=95))
    with pytest.raises(errors.DiskFullError, match="96 B, but 95 B are free"):
        write_gguf(tmp_path / "m.gguf", {}, [zeros()])
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for value in ("\ud800", ["a", "\ud800"]):
        with pytest.raises(errors.WriteError, match="not UTF-8"):
            write_gguf(tmp_path / "m.gguf", {"general.name": value}, [])
