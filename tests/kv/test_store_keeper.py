"""Blocks on their way to the disk: held while they are needed, let go of at once when asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.kv import BlockPool, KnownPrefixes, KVSpace, NoKeeper, NoPrefixes
from strata.kv.store import Buffer
from strata.kv.store_keeper import StoreKeeper
from support.store_chains import NBYTES, chain, content, loaded, store


class Memory:
    """KV blocks of NBYTES bytes."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.data = np.zeros((blocks, NBYTES), np.uint8)
        self.nbytes = self.data.nbytes

    def block(self, block: int) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] = self.data[block]
        return out


class Slow:
    """A store that writes when it may."""

    def __init__(self, directory: Path) -> None:
        self.real = store(directory)
        self.identity = self.real.identity
        self.may_write = threading.Event()
        self.saving = threading.Event()

    def find(self, keys: Sequence[bytes]) -> int:
        return self.real.find(keys)

    def load(self, keys: Sequence[bytes], buffers: Sequence[Buffer]) -> int:
        return self.real.load(keys, buffers)

    def save(self, tokens: Sequence[int], buffers: Sequence[Buffer]) -> None:
        self.saving.set()
        assert self.may_write.wait(10)
        self.real.save(tokens, buffers)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    s = Slow(tmp_path)
    yield s
    s.may_write.set()


def keeper(slow: Slow, blocks: int = 40) -> tuple[StoreKeeper, BlockPool, Memory]:
    memory, pool = Memory(blocks), BlockPool(blocks)
    return StoreKeeper(slow, memory, pool), pool, memory  # type: ignore[arg-type]


def hand_over(k: StoreKeeper, pool: BlockPool, memory: Memory, word: str) -> list[int]:
    """A sequence that ends: its blocks are saved and let go of."""
    blocks = pool.allocate(len(word))
    for block, data in zip(blocks, content(chain(word)), strict=True):
        memory.block(block)[:] = data
    k.save(chain(word), blocks)
    pool.release(blocks)
    return blocks


def test_blocks_are_held_until_they_are_written(slow: Slow) -> None:
    k, pool, memory = keeper(slow)
    hand_over(k, pool, memory, "abc")
    assert slow.saving.wait(10)
    hand_over(k, pool, memory, "xy")
    pool.check_integrity([k.blocks()])
    assert pool.free == 40 - 5
    slow.may_write.set()
    k.close()
    assert pool.free == 40
    assert [loaded(slow.real, w) for w in ("abc", "xy")] == [3, 2]


@pytest.mark.parametrize("known", [True, False])
def test_blocks_that_are_being_kept_are_no_sequences(slow: Slow, known: bool) -> None:
    k, pool, _ = keeper(slow)
    prefixes = KnownPrefixes(pool) if known else NoPrefixes()
    space = KVSpace(pool, prefixes, lambda source, target: None, k)
    first, second = (space.begin(chain("abc")) for _ in range(2))
    for kv, word in ((first, "abc"), (second, "xy")):
        assert space.make_room(kv, len(chain(word)))
        space.advance(kv, chain(word), len(chain(word)))
    space.save(first, chain("abc"))
    space.release(first)
    assert space.unused == 40 - 2
    assert slow.saving.wait(10)
    assert pool.free == 40 - 5
    space.release(second)
    assert space.unused == 40
    slow.may_write.set()
    k.close()
    assert space.unused == 40


def test_blocks_that_are_needed_are_given_back(slow: Slow) -> None:
    k, pool, memory = keeper(slow)
    hand_over(k, pool, memory, "abc")
    assert slow.saving.wait(10)
    hand_over(k, pool, memory, "xy")
    threading.Timer(0.05, slow.may_write.set).start()
    assert k.give_back()
    assert pool.free == 40
    assert not k.give_back()
    # What was being written is whole; what waited was not written.
    assert [loaded(slow.real, w) for w in ("abc", "xy")] == [3, 0]
    k.close()


def test_not_everything_waits_to_be_written(slow: Slow) -> None:
    k, pool, memory = keeper(slow, blocks=16)
    hand_over(k, pool, memory, "abcdefgh")  # one sequence may be any part of the pool
    assert pool.free == 8
    hand_over(k, pool, memory, "x")
    assert pool.free == 8
    slow.may_write.set()
    k.close()
    assert pool.free == 16
    hand_over(k, pool, memory, "y")
    assert pool.free == 16


def test_what_comes_back_is_what_was_written(slow: Slow) -> None:
    k, pool, memory = keeper(slow)
    hand_over(k, pool, memory, "abc")
    slow.may_write.set()
    k.close()
    tokens = [*chain("abcd"), 1]
    assert k.find(tokens, 0, 4) == 3
    assert k.find(tokens, 1, 2) == 1
    assert k.find(tokens, 3, 4) == 0
    blocks = pool.allocate(2)
    assert k.load(tokens, 1, blocks) == 2
    for block, right in zip(blocks, content(chain("abc"))[1:], strict=True):
        assert memory.block(block).tobytes() == right.tobytes()


def test_an_error_in_the_thread_loses_the_blocks_to_nobody(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    k, pool, memory = keeper(slow)
    slow.real = None  # type: ignore[assignment]
    slow.may_write.set()
    hand_over(k, pool, memory, "abc")
    k.close()
    assert pool.free == 40
    assert "not kept" in caplog.text


def test_what_is_given_up_is_kept_where_that_is_faster(slow: Slow) -> None:
    k, pool, memory = keeper(slow, blocks=8)
    slow.may_write.set()
    space = KVSpace(pool, NoPrefixes(), lambda source, target: None, k)
    for word, token_s, kept in (("abc", None, 0), ("abc", 1e-12, 0), ("abc", 1.0, 3)):
        tokens = [*chain(word), 5]
        kv = space.begin(tokens)
        assert space.make_room(kv, len(tokens))
        for block, data in zip(kv.table, content(chain(word)), strict=False):
            memory.block(block)[:] = data
        space.advance(kv, tokens, len(tokens))
        space.give_up(kv, tokens, token_s)
        assert pool.free == 8
        assert loaded(slow.real, word) == kept
    seconds = k.seconds(4)
    assert seconds is not None
    assert seconds > 0
    assert NoKeeper().seconds(4) is None
