"""The store of prefixes: what it gives back is right, or it gives nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK
from strata.kv import store as kv_store
from strata.kv.store import VERSION, Buffer, PrefixStore, block_keys
from strata.kv.store_directory import StoreDirectory, StoreError
from support.store_chains import (
    IDENTITY,
    NBYTES,
    chain,
    content,
    load,
    loaded,
    random_word,
    save,
    store,
)

DATA = 4096
HEAD = 152
BLOCKS = HEAD + 4 * KV_BLOCK * 3
DIGESTS = BLOCKS + 8 * 3
END = DIGESTS + 32 * 3 + 32


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.kv"))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A directory with one file of three blocks."""
    save(store(tmp_path), "abc")
    assert files(tmp_path)[0].stat().st_size == DATA + 3 * NBYTES
    return tmp_path


def test_what_was_saved_is_there_after_a_restart(full: Path) -> None:
    again = store(full)
    assert [loaded(again, word) for word in ("abc", "ab", "abcd", "abd", "b", "")] == [
        3, 2, 3, 2, 0, 0,
    ]  # fmt: skip


def test_chains_that_begin_alike_share_their_beginning(tmp_path: Path) -> None:
    s = store(tmp_path)
    for word in ("ab", "abcd", "abxy", "ab", "abcd"):
        save(s, word)
    sizes = [f.stat().st_size for f in files(tmp_path)]
    assert sizes == [DATA + 2 * NBYTES] * 3
    for where in (s, store(tmp_path)):
        assert [loaded(where, w) for w in ("abcd", "abxy", "abcx", "xy")] == [4, 4, 3, 0]


def test_one_part_of_a_chain_that_is_gone_ends_it(tmp_path: Path) -> None:
    s = store(tmp_path)
    for word in ("a", "ab", "abc"):
        save(s, word)
    (middle,) = tmp_path.glob(f"*-{block_keys(IDENTITY, chain('ab'))[-1].hex()}-*.kv")
    middle.unlink()
    assert loaded(store(tmp_path), "abc") == 1
    save(s, "abc")
    assert loaded(store(tmp_path), "abc") == 3


def test_a_chain_of_a_thousand_blocks_comes_back_from_any_place(tmp_path: Path) -> None:
    word = "abcde" * 260
    save(store(tmp_path), word)
    s = store(tmp_path)
    keys, data = block_keys(IDENTITY, chain(word)), content(chain(word))
    assert s.find(keys) == 1300
    found = load(s, keys[5:])
    assert [a.tobytes() for a in found] == [b.tobytes() for b in data[5:]]


def test_the_end_of_a_chain_is_kept_without_its_beginning(tmp_path: Path) -> None:
    """As windows are, which have given back what lies before them."""
    save(store(tmp_path), "abcdef", first=4)
    s = store(tmp_path)
    keys = block_keys(IDENTITY, chain("abcdef"))
    assert s.kept(keys) == [False] * 4 + [True] * 2
    right = content(chain("abcdef"))[4:]
    assert [a.tobytes() for a in load(s, keys[4:])] == [b.tobytes() for b in right]
    save(s, "abcdef", first=3)
    assert store(tmp_path).kept(keys) == [False] * 3 + [True] * 3


LENGTHS = [0, 1, HEAD - 1, HEAD, DIGESTS - 1, DIGESTS, END - 1, END, DATA - 1, DATA, DATA + 1]
LENGTHS += [DATA + NBYTES, DATA + 3 * NBYTES - 1, DATA + 3 * NBYTES + 1, DATA + 4 * NBYTES]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_file_of_another_length_is_deleted(
    full: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = files(full)
    os.truncate(path, length)
    with caplog.at_level(logging.WARNING, "strata.kv"):
        assert loaded(store(full), "abc") == 0
    assert not path.exists()
    assert len(caplog.records) == 1
    assert path.name in caplog.text


def test_a_flipped_bit_anywhere_is_never_believed(full: Path) -> None:
    (path,) = files(full)
    right = path.read_bytes()
    places = [*range(0, END, 7), END - 1, DATA, *range(DATA, len(right), 61), len(right) - 1]
    for place in places:
        damaged = bytearray(right)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        before = max(0, place - DATA) // NBYTES
        assert loaded(store(full), "abc") == (before if place >= DATA else 0)
        assert not path.exists()


def test_a_file_that_is_damaged_while_it_is_known_is_dropped(full: Path) -> None:
    s = store(full)
    assert loaded(s, "abc") == 3
    (path,) = files(full)
    for damage, left in ((lambda: os.truncate(path, DATA + NBYTES), 1), (path.unlink, 0)):
        keys = block_keys(IDENTITY, chain("abc"))
        assert s.find(keys) == 3
        damage()
        assert len(load(s, keys)) == left
        assert s.find(keys) == 0
        save(s, "abc")
        assert loaded(s, "abc") == 3


def sealed(directory: Path, header: bytes) -> bytes:
    """A header with the digest it should have."""
    return header + StoreDirectory(directory, 1).digest(header)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("magic", lambda h: b"X" + h[1:]),
        ("version", lambda h: h[:8] + (VERSION + 1).to_bytes(4, "little") + h[12:]),
        ("no blocks", lambda h: h[:12] + bytes(4) + h[16:]),
        ("more blocks", lambda h: h[:12] + (4).to_bytes(4, "little") + h[16:]),
        ("most blocks", lambda h: h[:12] + b"\xff" * 4 + h[16:]),
        ("block bytes", lambda h: h[:16] + (NBYTES * 3).to_bytes(8, "little") + h[24:]),
        ("identity", lambda h: h[:24] + hashlib.sha256(b"other").digest() + h[56:]),
        ("parent", lambda h: h[:56] + hashlib.sha256(b"other").digest() + h[88:]),
        ("tokens", lambda h: h[:HEAD] + b"\1" + h[HEAD + 1 :]),
        ("empty blocks", lambda h: h[:BLOCKS] + bytes(8) + h[BLOCKS + 8 :]),
        ("smaller blocks", lambda h: h[:BLOCKS] + b"\1" + h[BLOCKS + 1 :]),
        ("larger blocks", lambda h: h[:BLOCKS] + b"\xff" * 8 + h[BLOCKS + 8 :]),
    ],
)
def test_headers_that_are_whole_and_wrong(
    full: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    (path,) = files(full)
    data = path.read_bytes()
    path.write_bytes(sealed(full, change(data[: END - 32])) + data[END:])
    assert loaded(store(full), "abc") == 0
    assert not path.exists()


def test_another_models_file_is_not_taken(full: Path) -> None:
    other = hashlib.sha256(b"another model").digest()
    theirs = store(full, identity=other)
    assert theirs.find(block_keys(other, chain("abc"))) == 0
    (path,) = files(full)
    key = block_keys(IDENTITY, chain("abc"))[-1]
    moved = full / StoreDirectory(full, 1).name(other, key)
    moved.write_bytes(path.read_bytes())
    assert store(full, identity=other).find(block_keys(other, chain("abc"))) == 0
    assert not moved.exists()
    assert loaded(store(full), "abc") == 3


def test_blocks_of_another_size_are_not_taken(full: Path) -> None:
    s = PrefixStore(StoreDirectory(full, 1 << 30), IDENTITY, NBYTES + 1)
    assert s.find(block_keys(IDENTITY, chain("abc"))) == 0


def test_nobody_else_may_read_it(full: Path) -> None:
    (path,) = files(full)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_the_directory_is_bounded_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    size = DATA + NBYTES
    s = store(tmp_path, limit=3 * size)
    for word in "abc":
        save(s, word)
        time.sleep(0.01)
    assert loaded(s, "a") == 1  # used again
    save(s, "d")
    assert sum(f.stat().st_size for f in files(tmp_path)) <= 3 * size
    for where in (s, store(tmp_path, limit=3 * size)):
        assert [loaded(where, word) for word in "abcd"] == [1, 0, 1, 1]
    # Of all models together.
    other = hashlib.sha256(b"other").digest()
    theirs = store(tmp_path, limit=3 * size, identity=other)
    save(theirs, "z")
    assert len(files(tmp_path)) == 3


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    s = store(tmp_path, limit=2 * DATA)
    save(s, "a")
    save(s, "bcdefghijkl")
    assert [loaded(s, "a"), loaded(s, "b")] == [1, 0]


def test_a_chains_beginning_outlives_its_end(tmp_path: Path) -> None:
    s = store(tmp_path, limit=3 * (DATA + NBYTES))
    for word in ("a", "ab", "x"):
        save(s, word)
    assert loaded(s, "ab") == 2
    save(s, "y")
    save(s, "z")
    assert loaded(s, "ab") == 1


def test_processes_share_a_directory(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    save(one, "ab")
    assert loaded(other, "ab") == 2
    save(other, "abc")
    assert loaded(one, "abc") == 3
    for path in files(tmp_path):
        path.unlink()
    assert loaded(one, "abc") == 0


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_was_begun_and_abandoned_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = StoreDirectory(tmp_path, 1)
    for _ in range(2):
        with suppress(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(os, "unlink", interrupt)
            with directory.new("x", 4):
                raise KeyboardInterrupt
    abandoned, alive = sorted(tmp_path.glob("*.tmp"))
    with open(alive, "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        store(tmp_path)
        assert (abandoned.exists(), alive.exists()) == (False, True)
    store(tmp_path)
    assert not alive.exists()


def test_nobody_deletes_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = store(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: store(tmp_path))  # another process starts
    save(s, "ab")
    assert loaded(store(tmp_path), "ab") == 2


@pytest.mark.parametrize("where", ["pwritev", "fsync", "rename", "ftruncate"])
def test_a_full_disk_costs_what_was_to_be_kept_and_nothing_else(
    full: Path, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    s = store(full)

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        save(s, "abcd")
        save(s, "abcd")
    # Said once, however many requests there are.
    assert caplog.text.count("No space left") == 1
    assert loaded(s, "abcd") == 3
    assert sorted(f.suffix for f in full.iterdir()) == ["", ".kv"]
    save(s, "abcd")
    assert loaded(s, "abcd") == 4


def test_writes_and_reads_may_come_in_pieces(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(real: Callable[..., int]) -> Callable[..., int]:
        def move(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            first = buffers[0][:97]
            return real(fd, [first], offset)

        return move

    monkeypatch.setattr(os, "pwritev", short(os.pwritev))
    monkeypatch.setattr(os, "preadv", short(os.preadv))
    s = store(full)
    save(s, "abcdef")
    assert loaded(s, "abcdef") == 6
    assert loaded(store(full), "abcdef") == 6


def test_threads_that_load_together_bring_what_one_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of several parts, blocks of which the last is not a whole page; one is damaged."""
    monkeypatch.setattr(kv_store, "_PART_BYTES", 3 * NBYTES)
    word = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" * 4
    s = store(tmp_path)
    for end in (50, 51, 120, len(word)):
        save(s, word[:end])
    together = threading.Barrier(2)
    keys = block_keys(s.identity, chain(word))
    seen: dict[int, bytes] = {}

    def put(number: int, data: Buffer) -> None:
        if number in (0, 3):  # two parts at once, or the test does not end
            together.wait(60)
        seen[number] = data.tobytes()

    assert s.load(keys, put) == len(word)
    right = [block.tobytes() for block in content(chain(word))]
    assert [seen[number] for number in range(len(word))] == right
    # The last file has 88 blocks from number 120 on.
    last = max(files(tmp_path), key=lambda path: path.stat().st_size)
    data = bytearray(last.read_bytes())
    data[len(data) - 5 * NBYTES + 11] ^= 4
    last.write_bytes(data)
    assert s.load(keys, lambda number, data: None) == 203
    assert s.find(keys) == 120


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="reads always go through the cache")
def test_where_the_cache_cannot_be_passed_it_is_used(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, refused = os.preadv, []

    def choosy(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", choosy)
    assert loaded(store(full), "abc") == 3


def test_a_directory_that_goes_away_is_survived(
    full: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s = store(full)
    assert loaded(s, "abc") == 3
    shutil.rmtree(full)
    for _ in range(2):
        assert loaded(s, "abc") == 0
        save(s, "abc")
    assert len(caplog.records) == 1
    assert "KV is not kept" in caplog.text


def test_a_directory_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made a KV store"):
        store(tmp_path / "file")


def kill_while_writing(directory: Path, seed: int) -> None:
    program = Path(__file__).parents[1] / "support" / "store_chains.py"
    command = [sys.executable, str(program), str(directory), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while not files(directory) and process.poll() is None:  # however slow the machine is
            time.sleep(0.001)
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.05)))
        process.kill()


def check_after_kills(tmp_path: Path, kills: int) -> None:
    found = 0
    for seed in range(kills):
        kill_while_writing(tmp_path, seed)
        s = store(tmp_path, limit=40 * 8192)
        generator = np.random.default_rng(seed)
        # `loaded` compares every byte with what it should be.
        found += sum(loaded(s, random_word(generator)) for _ in range(20))
        assert not list(tmp_path.glob("*.tmp"))
        assert sum(f.stat().st_size for f in files(tmp_path)) <= 40 * 8192
    assert found > 0


def test_kill_at_random_moments(tmp_path: Path) -> None:
    check_after_kills(tmp_path, 4)


@pytest.mark.slow
def test_kill_at_random_moments_a_hundred_times(tmp_path: Path) -> None:
    check_after_kills(tmp_path, 100)
