"""What people do with what is kept: they list, pin, delete and move it."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK
from strata.cli import main
from strata.errors import UsageError
from strata.kv.block_packing import UNPACKING_BYTES, packed, unpacked
from strata.kv.store import Buffer, PrefixStore, block_keys
from strata.kv.store_contents import StoreContents, contents_bytes
from strata.kv.store_directory import StoreDirectory, StoreError
from support.store_chains import IDENTITY, NBYTES, chain, load, loaded, save, store

OTHER = hashlib.sha256(b"another model").digest()


def filled(path: Path) -> Path:
    """Two texts that begin alike, kept as three files, and one of another model."""
    s = PrefixStore(StoreDirectory(path, 1 << 30), IDENTITY, NBYTES, "tiny.gguf, f16")
    save(s, "ab")
    save(s, "abcd")
    save(s, "abx")
    save(store(path, identity=OTHER), "zz")
    return path


def contents(path: Path) -> StoreContents:
    return StoreContents(StoreDirectory(path, 0))


def test_what_is_there_is_told(tmp_path: Path) -> None:
    kept = {(k.label, k.first, k.tokens) for k in contents(filled(tmp_path)).kept()}
    b = KV_BLOCK
    assert kept == {
        ("tiny.gguf, f16", 0, 2 * b),
        ("tiny.gguf, f16", 2 * b, 2 * b),
        ("tiny.gguf, f16", 2 * b, b),
        ("", 0, 2 * b),
    }


def test_damaged_files_are_left_to_those_who_use_them(tmp_path: Path) -> None:
    files = sorted(filled(tmp_path).glob("*.kv"))
    os.truncate(files[0], 40)
    os.truncate(files[1], 5000)
    assert len(contents(tmp_path).kept()) == 2
    assert all(file.exists() for file in files)


def test_without_its_beginning_a_text_is_of_no_use(tmp_path: Path) -> None:
    found = contents(filled(tmp_path))
    (first,) = (k for k in found.kept() if k.first == 0 and k.label)
    found.clear(found.chosen([first.id]))
    assert [k.first for k in contents(tmp_path).kept() if k.label] == [None, None]


def test_what_is_pinned_stays_with_its_beginning(tmp_path: Path) -> None:
    found = contents(filled(tmp_path))
    (longest,) = (k for k in found.kept() if k.first == 2 * KV_BLOCK and k.tokens == 2 * KV_BLOCK)
    names = found.with_beginnings(found.chosen([longest.id]))
    assert len(names) == 2
    assert found.pin(names, True) == names
    total = sum(k.file.nbytes for k in found.kept())
    small = store(tmp_path, limit=total)
    for letter in "mnopq":
        save(small, letter * 2)
    assert loaded(store(tmp_path), "abcd") == 4
    assert loaded(store(tmp_path), "abx") == 2
    assert sum(k.file.pinned for k in contents(tmp_path).kept()) == 2
    found.pin(names, False)
    for letter in "rstuv":
        save(small, letter * 2)
    assert loaded(store(tmp_path), "abcd") == 0


def test_what_fits_beside_nothing_that_is_pinned_deletes_nothing(tmp_path: Path) -> None:
    found = contents(filled(tmp_path))
    kept = found.kept()
    found.pin(found.chosen([k.id for k in kept if k.label]), True)
    pinned = sum(k.file.nbytes for k in kept if k.label)
    save(store(tmp_path, limit=pinned + 5000), "mm")
    assert len(contents(tmp_path).kept()) == len(kept)


def test_moved_entries_are_found_there(tmp_path: Path) -> None:
    found = contents(filled(tmp_path / "here"))
    (longest,) = (k for k in found.kept() if k.first == 2 * KV_BLOCK and k.tokens == 2 * KV_BLOCK)
    found.pin(found.chosen([longest.id]), True)
    there = StoreDirectory(tmp_path / "there", 1 << 30)
    found.move(found.with_beginnings(found.chosen([longest.id])), there)
    assert loaded(store(tmp_path / "there"), "abcd") == 4
    assert loaded(store(tmp_path / "here"), "abcd") == 0
    assert [k.file.pinned for k in StoreContents(there).kept()].count(True) == 1
    with pytest.raises(UsageError, match="is where they are"):
        StoreContents(there).move(StoreContents(there).chosen([]), there)


def test_a_store_without_room_keeps_what_it_cannot_take_where_it_is(tmp_path: Path) -> None:
    found = contents(filled(tmp_path / "here"))
    with pytest.raises(StoreError, match="has no room"):
        found.move(found.chosen([]), StoreDirectory(tmp_path / "there", 9000))
    assert len(contents(tmp_path / "here").kept()) == 4


def test_damage_is_found_when_it_is_moved(tmp_path: Path) -> None:
    found = contents(filled(tmp_path / "here"))
    name = found.chosen([])[0]
    path = tmp_path / "here" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        found.move([name], StoreDirectory(tmp_path / "there", 1 << 30))
    assert path.exists()
    assert not list((tmp_path / "there").glob("*.kv"))


@pytest.mark.parametrize("wanted", ["", "ab", "zzzzzz", "0" * 64])
def test_ids_that_are_none_are_one_line(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(UsageError, match="of the 4 entries: `strata store list` has their ids"):
        contents(filled(tmp_path)).chosen([wanted])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--kv-store", str(filled(tmp_path / "kv"))]
    assert main(["store", *where]) == 0
    assert capsys.readouterr().out.count("tiny.gguf, f16") == 3
    assert main(["store", "list", *where, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert len(entries) == 4
    (one,) = (e["id"] for e in entries if not e["model"])
    assert main(["store", "pin", one[:8], *where]) == 0
    assert "pinned 1 entries" in capsys.readouterr().out
    assert main(["store", "move", one, *where, "--to", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert main(["store", "clear", *where]) == 2
    assert "say --yes to do it" in capsys.readouterr().err
    assert main(["store", "clear", *where, "--yes", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 3
    assert not [p.name for p in (tmp_path / "kv").iterdir() if p.suffix]
    assert main(["store", "clear", *where]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--kv-store", "/no/such"], "there is no KV store at /no/such"),
        (["move"], "--to is where"),
        (["list", "--to", "x"], "--to is where"),
        (["squeeze"], "squeeze"),
        (["lookup"], "--text is what"),
        (["list", "--text", __file__], "--text is what"),
        (["lookup", "--text", __file__, "--kv-store", "."], "which the KV store has not made"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", *arguments]) in (1, 2)
    assert words in capsys.readouterr().err


def test_others_files_are_refused_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "novel.kv").write_text("the only copy")
    assert main(["store", "clear", "--yes", "--kv-store", str(tmp_path)]) == 1
    assert "which the KV store has not made" in capsys.readouterr().err
    assert (tmp_path / "novel.kv").read_text() == "the only copy"


def test_what_was_moved_goes_in_the_order_in_which_it_was_used(tmp_path: Path) -> None:
    """Of a text its end is the first to give way to others, and its beginning the last."""
    found = contents(filled(tmp_path / "here"))
    there = StoreDirectory(tmp_path / "there", 1 << 30)
    moved = found.move(found.with_beginnings(found.chosen([])), there)
    assert len(moved) == 4
    left = StoreContents(there).kept()
    full = sum(k.file.nbytes for k in left)
    save(store(tmp_path / "there", limit=full - 1), "mm")
    assert [k.first for k in StoreContents(there).kept()].count(None) == 0


def test_what_is_damaged_there_is_replaced_by_what_is_moved(tmp_path: Path) -> None:
    found = contents(filled(tmp_path / "here"))
    name = next(iter(found.with_beginnings(found.chosen([]))))
    there = StoreDirectory(tmp_path / "there", 1 << 30)
    found.move([name], there)
    (file,) = (tmp_path / "there").glob("*.kv")
    os.truncate(file, 100)
    filled(tmp_path / "here")
    contents(tmp_path / "here").move([name], there)
    assert len(StoreContents(there).kept()) == 1


def test_what_was_not_named_is_not_deleted(tmp_path: Path) -> None:
    save(PrefixStore(StoreDirectory(tmp_path, 1 << 30), IDENTITY, NBYTES), "ab")
    found = contents(tmp_path)
    (one,) = found.kept()
    save(store(tmp_path, identity=OTHER), "zz")
    assert found.clear(found.chosen([one.id])) == [one.file.name]
    assert len(contents(tmp_path).kept()) == 1


def test_a_name_that_is_no_text_is_a_label(tmp_path: Path) -> None:
    name = os.fsdecode(b"mod\xffel.gguf")
    save(PrefixStore(StoreDirectory(tmp_path, 1 << 30), IDENTITY, NBYTES, name), "a")
    (one,) = contents(tmp_path).kept()
    assert one.label == "mod?el.gguf"


def test_what_other_layers_keep_of_a_text_goes_with_it(tmp_path: Path) -> None:
    """Of layers with a window there is only the end of the same text; all of it is needed."""
    directory = StoreDirectory(tmp_path / "here", 1 << 30)
    every = PrefixStore(directory, IDENTITY, NBYTES, "tiny.gguf, f16")
    save(every, "ab")
    save(every, "abcd")
    save(PrefixStore(directory, OTHER, NBYTES, "tiny.gguf, f16"), "abcd", 3)
    save(PrefixStore(directory, OTHER[::-1], NBYTES, "another.gguf, f16"), "abcd", 3)
    found = contents(tmp_path / "here")
    (last,) = (k for k in found.kept() if k.first == 2 * KV_BLOCK)
    names = found.with_beginnings([last.file.name])
    moved = found.move(names, StoreDirectory(tmp_path / "there", 1 << 30))
    assert len(moved) == 3
    (left,) = contents(tmp_path / "here").kept()
    assert (left.label, left.first) == ("another.gguf, f16", None)


def smooth(path: Path, word: str) -> dict[bytes, bytes]:
    """Keep a chain of blocks as KV in bf16 is, whose upper halves are alike; by key what they
    hold."""
    random, keys = np.random.default_rng(3), block_keys(IDENTITY, chain(word))
    blocks = [random.normal(0, 1, NBYTES // 4).astype(np.float32) for _ in keys]
    data = [(block.view(np.uint32) & 0xFFFF0000).view(np.uint8) for block in blocks]

    def get(number: int, out: Buffer) -> None:
        out[:] = data[number]

    s = PrefixStore(StoreDirectory(path, 1 << 30), IDENTITY, NBYTES, "tiny.gguf, bf16")
    s.save(chain(word), 0, len(word), get)
    return {key: block.tobytes() for key, block in zip(keys, data, strict=True)}


def read_back(where: PrefixStore, word: str) -> dict[bytes, bytes]:
    keys = block_keys(IDENTITY, chain(word))
    assert where.find(keys) == len(keys)
    return dict(zip(keys, (b.tobytes() for b in load(where, keys)), strict=True))


def test_what_is_compressed_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """For who looks afresh, and for who had looked before; pinned and as old as it was."""
    want = smooth(tmp_path, "abcdef")
    before = store(tmp_path)
    assert read_back(before, "abcdef") == want
    found = contents(tmp_path)
    (one,) = found.kept()
    found.pin([one.file.name], True)
    (new,) = found.compress(found.chosen([]))
    (small,) = found.kept()
    assert (small.id, small.label, small.tokens, small.first) == (one.id, one.label, one.tokens, 0)
    assert small.compressed
    assert small.file.pinned
    assert small.file.used == one.file.used
    assert small.file.nbytes < 0.9 * one.file.nbytes
    assert [p.name for p in tmp_path.glob("*.kv*")] == [new]
    assert read_back(before, "abcdef") == want
    assert read_back(store(tmp_path), "abcdef") == want
    assert found.compress([new]) == []
    moved = StoreDirectory(tmp_path / "there", 1 << 30)
    found.move([new], moved)
    assert read_back(store(tmp_path / "there"), "abcdef") == want
    assert [k.file.nbytes for k in StoreContents(moved).kept()] == [small.file.nbytes]


def test_what_does_not_become_smaller_stays_as_it_is(tmp_path: Path) -> None:
    found = contents(filled(tmp_path))
    before = sorted(tmp_path.iterdir())
    assert found.compress(found.chosen([])) == []
    assert sorted(tmp_path.iterdir()) == before
    assert loaded(store(tmp_path), "abcd") == 4


def test_compressing_ends_when_it_is_told_to(tmp_path: Path) -> None:
    smooth(tmp_path, "abc")
    found = contents(tmp_path)
    assert found.compress(found.chosen([]), lambda: False) == []


def test_a_damaged_block_is_not_compressed(tmp_path: Path) -> None:
    smooth(tmp_path, "abc")
    found = contents(tmp_path)
    path = tmp_path / found.chosen([])[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        found.compress([path.name])
    assert [p.name for p in tmp_path.glob("*.*")] == [path.name]


@pytest.mark.parametrize("at", [-1, -40, -100])
def test_a_damaged_compressed_block_is_not_used(tmp_path: Path, at: int) -> None:
    smooth(tmp_path, "abc")
    found = contents(tmp_path)
    (name,) = found.compress(found.chosen([]))
    data = bytearray((tmp_path / name).read_bytes())
    data[at] ^= 255
    (tmp_path / name).write_bytes(data)
    where, keys = store(tmp_path), block_keys(IDENTITY, chain("abc"))
    assert where.find(keys) == 3
    assert len(load(where, keys)) < 3
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("nbytes", [1, 2, 699, 700, 4096])
def test_packing_and_back(nbytes: int) -> None:
    block = np.zeros(nbytes, np.uint8)
    part = packed(block)
    whole = part if len(part) == nbytes else unpacked(part, np.empty(nbytes, np.uint8))
    assert whole.tobytes() == block.tobytes()


def test_a_part_that_holds_more_than_a_block_is_no_larger_than_one() -> None:
    part = packed(np.zeros(1 << 24, np.uint8))
    assert not unpacked(part, np.ones(4096, np.uint8)).any()
    with pytest.raises(StoreError, match="too short"):
        unpacked(packed(np.zeros(4096, np.uint8)), np.empty(8192, np.uint8))
    with pytest.raises(StoreError, match="is damaged"):
        unpacked(np.full(100, 255, np.uint8), np.empty(4096, np.uint8))


@pytest.mark.parametrize("zeros", [0, 1, 150_000, 299_000])
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_unpacking_in_pieces_takes_no_more_than_is_owned(zeros: int, cut: int) -> None:
    block = np.random.default_rng(zeros).integers(0, 16, 300_001).astype(np.uint8)
    block[:zeros] = 0
    # Without its checksum, or a part of that, as others may have written it.
    part, out = packed(block)[: -cut or None].copy(), np.empty_like(block)
    tracemalloc.start()
    unpacked(part, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.tobytes() == block.tobytes()
    assert peak < UNPACKING_BYTES


def test_a_text_is_looked_up(tmp_path: Path) -> None:
    found = contents(filled(tmp_path))
    assert found.lookup(chain("abcz")) == {"tiny.gguf, f16": 3 * KV_BLOCK}
    assert found.lookup(chain("zz")) == {"": 2 * KV_BLOCK}
    assert found.lookup(chain("b")) == {}
    assert found.lookup([]) == {}


def test_contents_of_one_model(tmp_path: Path) -> None:
    directory = StoreDirectory(filled(tmp_path), 0)
    own = StoreContents(directory, [OTHER])
    (one,) = own.kept()
    assert own.clear(own.chosen([])) == [one.file.name]
    assert len(contents(tmp_path).kept()) == 3
    assert contents_bytes(directory, [IDENTITY]) > contents_bytes(directory, []) > 0
