"""What lies in a store's directory and is not the store's is neither changed nor waited for."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.kv.store import block_keys
from strata.kv.store_directory import MARK, StoreDirectory, StoreError
from support.store_chains import IDENTITY, chain, loaded, save, store

ENTRY = 4096 + 700
ROOT = os.geteuid() == 0


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree without following links."""
    seen = {}
    for path in [root, *sorted(root.rglob("*"))]:
        s = path.lstat()
        content: object = None
        if stat.S_ISREG(s.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(s.st_mode):
            content = os.readlink(path)
        seen[str(path)] = (s.st_mode, s.st_uid, s.st_ino, s.st_mtime_ns, content)
    return seen


def opened(directory: Path, limit: int = 1 << 30) -> StoreDirectory:
    return StoreDirectory(directory, limit)


# --- whatever lies there ----------------------------------------------------------------------

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
KINDS = ["file", "empty", "directory", "full directory", "link", "dangling", "fifo", "socket"]
KINDS += ["hard link", "link to a directory", *(["device"] if ROOT else [])]

NAMES = st.one_of(
    st.sampled_from(
        ["main.kv", "notes.txt", ".hidden", "lost+found", "x.kv.bak", "a.tmp", "-", MARK + ".old"]
    ),
    HEX.map(lambda h: f"{h}.kv"),
    HEX.map(lambda h: h[:32]),
    HEX.map(lambda h: f"{h[:32]}-{h}-{h[:16]}.kv"),
    HEX.map(lambda h: f"{h[:32]}-{h[:16]}.tmp"),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
    .map(lambda t: t[:50])
    .filter(lambda t: t not in (".", "..", MARK)),
)  # fmt: skip


def plant(path: Path, kind: str, outside: Path) -> None:
    """Something of somebody else's."""
    if kind == "file":
        path.write_bytes(b"STRATAKV, or the only copy of a novel")
    elif kind == "empty":
        path.touch(0o600)
    elif kind == "directory":
        path.mkdir()
    elif kind == "full directory":
        path.mkdir()
        for name in ("main.kv", "1.tmp"):
            (path / name).write_text("a Kivy project")
    elif kind == "link":
        path.symlink_to(outside / "file")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "link to a directory":
        path.symlink_to(outside)
    elif kind == "hard link":
        os.link(outside / "file", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            os.mkfifo(path)
    if kind not in ("hard link", "link", "dangling", "link to a directory"):
        os.utime(path, (1, 1))


@contextmanager
def places() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as name:
        inside, outside = Path(name, "inside"), Path(name, "outside")
        inside.mkdir()
        outside.mkdir()
        (outside / "file").write_text("not yours")
        os.utime(outside / "file", (2, 2))
        yield inside, outside


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(NAMES, st.sampled_from(KINDS), min_size=1, max_size=4))
def test_a_directory_that_holds_anything_is_refused_as_it_is(things: dict[str, str]) -> None:
    with places() as (inside, outside):
        for name, kind in things.items():
            plant(inside / name, kind, outside)
        before = snapshot(inside.parent)
        with pytest.raises(StoreError, match="has not made"):
            opened(inside)
        assert snapshot(inside.parent) == before


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(NAMES, st.sampled_from(KINDS), max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KINDS[2:])), max_size=3),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_what_comes_later_is_passed_over(
    things: dict[str, str], replaced: list[tuple[int, str]], words: list[str]
) -> None:
    """Other things come to lie beside the store's files, and in their places."""
    with places() as (inside, outside), patch.object(os, "fsync"):  # a busy disk takes minutes
        s = store(inside, limit=5 * ENTRY)
        for word in ("a", "ab", "ba", "bb"):
            save(s, word)
        ours = sorted(inside.glob("*.kv"))
        foreign = []
        for number, kind in replaced:
            if kind != "hard link" and ours[number] not in foreign:
                ours[number].unlink()
                plant(ours[number], kind, outside)
                foreign.append(ours[number])
        for name, kind in things.items():
            plant(inside / name, kind, outside)
            foreign.append(inside / name)
        paths = {str(p) for f in foreign for p in (f, *f.rglob("*"))}

        def theirs() -> dict[str, tuple[object, ...]]:
            seen = {**snapshot(inside), **snapshot(outside)}
            return {p: what for p, what in seen.items() if p in paths or str(outside) in p}

        before = theirs()
        for word in words:
            save(s, word)
            loaded(s, word)
        for word in ("aabba", "bbaab"):  # more than fits
            save(s, word)
        if foreign:
            with pytest.raises(StoreError, match="has not made"):
                opened(inside)
        assert theirs() == before


def test_an_entry_in_anothers_place_is_not_written_over(tmp_path: Path) -> None:
    s = store(tmp_path)
    name = opened(tmp_path).name(IDENTITY, block_keys(IDENTITY, chain("ab"))[-1])
    (tmp_path / name).symlink_to("somewhere")
    save(s, "ab")
    assert os.readlink(tmp_path / name) == "somewhere"
    assert loaded(s, "ab") == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([name, MARK])


# --- whose it is ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_directory_that_others_may_write_in_is_refused(tmp_path: Path, mode: int) -> None:
    own = tmp_path / "kv"
    own.mkdir()
    for _ in range(2):
        own.chmod(mode)
        with pytest.raises(StoreError, match=r"others may write in .*/kv \(mode 1?7"):
            opened(own)
        own.chmod(0o755)
        save(store(own), "a")
        assert loaded(store(own), "a") == 1


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_a_directory_or_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "kv"
    save(store(own), "a")
    (entry,) = own.glob("*.kv")
    for path in (own, own / MARK, entry):
        os.chown(path, 12345, 12345)
        before = snapshot(own)
        with pytest.raises(StoreError, match=r"another user|not a file of yours|has not made"):
            opened(own)
        assert snapshot(own) == before
        os.chown(path, 0, 0)
    assert loaded(store(own), "a") == 1


def test_what_another_store_has_written_is_not_believed(tmp_path: Path) -> None:
    """Whoever does not know the secret can make neither a name nor a header."""
    save(store(tmp_path / "one"), "a")
    s = store(tmp_path / "other")
    save(s, "b")
    (stranger,) = (tmp_path / "one").glob("*.kv")
    (tmp_path / "other" / stranger.name).write_bytes(stranger.read_bytes())
    assert loaded(s, "a") == 0
    with pytest.raises(StoreError, match="has not made"):
        opened(tmp_path / "other")
    (tmp_path / "other" / stranger.name).unlink()
    name = opened(tmp_path / "other").name(IDENTITY, block_keys(IDENTITY, chain("a"))[-1])
    (tmp_path / "other" / name).write_bytes(stranger.read_bytes())
    assert loaded(store(tmp_path / "other"), "a") == 0
    assert loaded(store(tmp_path / "other"), "b") == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda mark: mark.write_text("Strata KV store 3\n"), "of this version"),
        (lambda mark: mark.write_bytes(b"\0" * 83), "of this version"),
        (lambda mark: mark.chmod(0o644), "others may read it"),
        (lambda mark: (mark.unlink(), mark.mkdir()), "not a file of yours"),
        (lambda mark: (mark.unlink(), os.mkfifo(mark)), "not a file of yours"),
        (lambda mark: (mark.unlink(), mark.symlink_to("/dev/null")), "not a file of yours"),
        (lambda mark: (mark.unlink(), mark.touch(0o600)), "has not made"),
        (lambda mark: mark.unlink(), "has not made"),
    ],
)
def test_a_mark_that_is_not_one(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    save(store(tmp_path), "a")
    damage(tmp_path / MARK)
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=said):
        opened(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_mark_that_was_begun_is_finished(tmp_path: Path) -> None:
    (tmp_path / MARK).touch(0o600)
    save(store(tmp_path), "a")
    assert loaded(store(tmp_path), "a") == 1


def test_a_store_of_the_first_layout_is_named_as_such(tmp_path: Path) -> None:
    old = tmp_path / IDENTITY.hex()[:32]
    old.mkdir()
    (old / f"{'ab' * 32}.kv").write_bytes(b"STRATAKV")
    with pytest.raises(StoreError, match="earlier version"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["file", "fifo", "dangling"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "x", kind, tmp_path)
    with pytest.raises(StoreError, match="cannot be made a KV store"):
        opened(tmp_path / "x")


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        s = store(tmp_path)
        save(s, "abc")
        assert loaded(s, "abc") == 3
    del s
    assert len(os.listdir("/proc/self/fd")) == before


def test_processes_that_begin_together_share_one_secret(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from strata.kv.store_directory import *;"
        "print(StoreDirectory(Path(sys.argv[1]), 1).digest(b'').hex())"
    )
    for number in range(2):
        command = [sys.executable, "-c", program, str(tmp_path / str(number))]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        assert len({process.communicate()[0] for process in running}) == 1


# --- a disk that is full ----------------------------------------------------------------------


def test_no_file_may_be_that_large(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    s = store(tmp_path)
    save(s, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 800, hard))
    try:
        for word in ("abc", "b", "bcd"):
            save(s, word)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(caplog.records) == 2  # one each time that it begins
    assert [loaded(s, word) for word in ("abc", "b", "bcd")] == [1, 1, 1]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("file systems may not be mounted here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = small_disk / "kv"
    s = store(own)
    words = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    for word in words:
        save(s, word)
    (small_disk / "theirs").touch()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "theirs").write_bytes(bytes(1 << 17))
    assert os.statvfs(small_disk).f_bavail == 0
    found = [loaded(s, word) for word in words]
    for _ in range(5):
        save(s, "gggggggg")
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert [loaded(store(own), word) for word in words] == found
    (small_disk / "theirs").unlink()
    save(s, "hh")
    assert loaded(store(own), "hh") == 2


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "theirs").write_bytes(bytes(1 << 17))
    own = small_disk / "kv"
    with pytest.raises(StoreError, match="No space left"):
        opened(own)
    (small_disk / "theirs").unlink()
    save(store(own), "a")
    assert loaded(store(own), "a") == 1
