"""Digests that are remembered are those of the file as it is now, or there are none."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from strata.formats.disk_file import DiskFile
from strata.hub.digests import FileDigests

SIZE = 3_000_000
DIGEST = bytes(range(32))
LATER = 10**10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "model.gguf"
    made.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return made


@pytest.fixture
def memory(tmp_path: Path) -> FileDigests:
    return FileDigests(tmp_path / "digests")


@pytest.fixture
def known(path: Path, memory: FileDigests) -> Path:
    """A file whose digest is remembered."""
    file = DiskFile(path)
    memory.keep(file, DIGEST, time.time_ns() + LATER)
    file.close()
    assert recall(path, memory) == DIGEST
    return path


def recall(path: Path, memory: FileDigests) -> bytes | None:
    file = DiskFile(path)
    try:
        return memory.recall(file)
    finally:
        file.close()


def tick(path: Path) -> None:
    """Wait until the file system's clock has moved on."""
    probe = path.with_suffix(".probe")
    before = path.stat().st_ctime_ns
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > before:
            return
        time.sleep(0.001)


def test_a_byte_that_changes_is_noticed_though_times_are_put_back(
    known: Path, memory: FileDigests
) -> None:
    for place in np.random.default_rng(1).integers(0, SIZE, 20):
        tick(known)
        times = known.stat()
        with open(known, "r+b") as f:
            f.seek(int(place))
            byte = f.read(1)[0]
            f.seek(int(place))
            f.write(bytes([byte ^ 0x10]))
        os.utime(known, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert known.stat().st_mtime_ns == times.st_mtime_ns
        assert recall(known, memory) is None
        file = DiskFile(known)
        memory.keep(file, DIGEST, time.time_ns() + LATER)
        file.close()
        assert recall(known, memory) == DIGEST


def test_another_file_in_its_place_is_noticed(known: Path, memory: FileDigests) -> None:
    times = known.stat()
    other = known.with_name("other")
    other.write_bytes(bytes(SIZE))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, known)
    assert recall(known, memory) is None


def test_samples_have_to_agree_where_times_do_not_tell(
    known: Path, memory: FileDigests, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DiskFile(known)
    real = file.read
    monkeypatch.setattr(file, "read", lambda offset, n: real(offset, n)[:-1] + b"?")
    assert memory.recall(file) is None
    monkeypatch.undo()
    assert memory.recall(file) == DIGEST
    file.close()


def test_what_was_written_just_now_is_not_remembered(path: Path, memory: FileDigests) -> None:
    file = DiskFile(path)
    memory.keep(file, DIGEST, file.identity.ctime_ns + 10**9)
    assert memory.recall(file) is None
    file.close()


def test_what_changed_while_it_was_read_is_not_remembered(path: Path, memory: FileDigests) -> None:
    file = DiskFile(path)
    tick(path)
    path.chmod(0o600)
    with open(path, "r+b") as f:
        f.write(b"x")
    memory.keep(file, DIGEST, time.time_ns() + LATER)
    assert recall(path, memory) is None
    file.close()


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{", "null", '{"file": []}', '{"file": 1, "samples": 2, "digest": 3}', "[" * 4000],
)
def test_damaged_notes_are_forgotten(known: Path, memory: FileDigests, damage: str) -> None:
    (note,) = (known.parent / "digests").iterdir()
    note.write_text(damage)
    assert recall(known, memory) is None


def test_notes_that_others_may_write_are_not_believed(known: Path, memory: FileDigests) -> None:
    (note,) = (known.parent / "digests").iterdir()
    assert note.stat().st_mode & 0o077 == 0
    note.chmod(0o666)
    assert recall(known, memory) is None
    note.unlink()
    os.mkfifo(note)
    assert recall(known, memory) is None


def test_where_nothing_can_be_kept_nothing_is(path: Path) -> None:
    memory = FileDigests(path / "below a file")
    file = DiskFile(path)
    memory.keep(file, DIGEST, time.time_ns() + LATER)
    assert memory.recall(file) is None
    file.close()
