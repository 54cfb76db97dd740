"""Blocks on their way to the disk: held while they are needed, let go of at once when asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK
from strata.kv import (
    BlockPool,
    BlockRun,
    KVCacheManager,
    NoPrefixCache,
    PrefixCache,
    PrefixIndex,
    store_offload,
)
from strata.kv.store import Buffer, PrefixStore
from strata.kv.store_directory import StoreDirectory
from strata.kv.store_offload import StoreOffload
from strata.program import StateGroup
from support.store_chains import NBYTES, chain, content, loaded, store

FULL = (StateGroup((0,)),)


class Memory:
    """Blocks of NBYTES bytes in each group."""

    def __init__(self, blocks: int, groups: int = 1) -> None:
        self.blocks = (blocks,) * groups
        self.data = np.zeros((groups, blocks, NBYTES), np.uint8)
        self.nbytes = self.data.nbytes

    def block_nbytes(self, group: int) -> int:
        return NBYTES

    def copy(self, group: int, source: int, target: int) -> None:
        self.data[group, target] = self.data[group, source]

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        out[:] = self.data[group, block]

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        self.data[group, block] = data


class Slow:
    """A store that writes when it may."""

    def __init__(self, directory: Path) -> None:
        self.real = store(directory)
        self.identity = self.real.identity
        self.may_write = threading.Event()
        self.saving = threading.Event()

    def find(self, keys: Sequence[bytes]) -> int:
        return self.real.find(keys)

    def kept(self, keys: Sequence[bytes]) -> list[bool]:
        return self.real.kept(keys)

    def load(self, keys: Sequence[bytes], put: Callable[[int, Buffer], None]) -> int:
        return self.real.load(keys, put)

    def touch(self, keys: Sequence[bytes]) -> None:
        self.real.touch(keys)

    def save(
        self, tokens: Sequence[int], first: int, count: int, get: Callable[[int, Buffer], None]
    ) -> None:
        self.saving.set()
        assert self.may_write.wait(10)
        self.real.save(tokens, first, count, get)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    s = Slow(tmp_path)
    yield s
    s.may_write.set()


def offload(
    slow: Slow, blocks: int = 40, token_s: float | None = None
) -> tuple[StoreOffload, BlockPool, Memory]:
    memory, pool = Memory(blocks), BlockPool(blocks)
    made = StoreOffload(FULL, [slow], memory, [pool], lambda: token_s, lambda: True)  # type: ignore[list-item, arg-type]
    return made, pool, memory


def hand_over(k: StoreOffload, pool: BlockPool, memory: Memory, word: str) -> list[int]:
    """A sequence that ends: its blocks are saved and let go of."""
    blocks = pool.allocate(len(word))
    for block, data in zip(blocks, content(chain(word)), strict=True):
        memory.data[0, block] = data
    k.save(chain(word), [BlockRun(0, 0, tuple(blocks))])
    pool.release(blocks)
    return blocks


def test_blocks_are_held_until_they_are_written(slow: Slow) -> None:
    k, pool, memory = offload(slow)
    hand_over(k, pool, memory, "abc")
    assert slow.saving.wait(10)
    hand_over(k, pool, memory, "xy")
    pool.check_integrity([k.blocks(0)])
    assert pool.free == 40 - 5
    slow.may_write.set()
    k.close()
    assert pool.free == 40
    assert [loaded(slow.real, w) for w in ("abc", "xy")] == [3, 2]


@pytest.mark.parametrize("known", [True, False])
def test_blocks_that_are_being_kept_are_no_sequences(slow: Slow, known: bool) -> None:
    k, pool, memory = offload(slow)
    index: PrefixIndex = PrefixCache(FULL, [pool]) if known else NoPrefixCache()
    manager = KVCacheManager(FULL, [pool], index, memory, k, step_rows=512)
    first, second = (manager.match_prefix(chain("abc")) for _ in range(2))
    for kv, word in ((first, "abc"), (second, "xy")):
        assert manager.reserve(kv, len(chain(word)))
        manager.commit(kv, chain(word), len(chain(word)))
    manager.save(first, chain("abc"))
    manager.release(first)
    assert manager.unused() == [40 - 2]
    assert slow.saving.wait(10)
    assert pool.free == 40 - 5
    manager.release(second)
    assert manager.unused() == [40]
    slow.may_write.set()
    k.close()
    assert manager.unused() == [40]


def test_blocks_that_are_needed_are_given_back(slow: Slow) -> None:
    k, pool, memory = offload(slow)
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
    k, pool, memory = offload(slow, blocks=16)
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
    k, pool, memory = offload(slow)
    hand_over(k, pool, memory, "abc")
    slow.may_write.set()
    k.close()
    tokens = [*chain("abcd"), 1]
    assert k.find(tokens, 0, 4) == 3
    assert k.find(tokens, 1, 2) == 2
    assert k.find(tokens, 3, 4) == 3
    blocks = pool.allocate(2)
    assert k.load(tokens, BlockRun(0, 1, tuple(blocks))) == 2
    for block, right in zip(blocks, content(chain("abc"))[1:], strict=True):
        assert memory.data[0, block].tobytes() == right.tobytes()


def test_an_error_in_the_thread_loses_the_blocks_to_nobody(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    k, pool, memory = offload(slow)
    slow.real = None  # type: ignore[assignment]
    slow.may_write.set()
    hand_over(k, pool, memory, "abc")
    k.close()
    assert pool.free == 40
    assert "not kept" in caplog.text


@pytest.mark.parametrize(("token_s", "kept"), [(None, 0), (1e-12, 0), (1.0, 3)])
def test_what_is_given_up_is_kept_where_that_is_faster(
    slow: Slow, token_s: float | None, kept: int
) -> None:
    k, pool, memory = offload(slow, blocks=8, token_s=token_s)
    slow.may_write.set()
    manager = KVCacheManager(FULL, [pool], NoPrefixCache(), memory, k, step_rows=512)
    tokens = [*chain("abc"), 5]
    kv = manager.match_prefix(tokens)
    assert manager.reserve(kv, len(tokens))
    for block, data in zip(kv.tables[0], content(chain("abc")), strict=False):
        memory.data[0, block] = data
    manager.commit(kv, tokens, len(tokens))
    manager.preempt(kv, tokens)
    assert pool.free == 8
    assert loaded(slow.real, "abc") == kept


GROUPS = (StateGroup((0,)), StateGroup((1,), window=100), StateGroup((2,), recurrent=True))


def several(directory: Path, blocks: int = 40) -> tuple[KVCacheManager, StoreOffload, Memory]:
    """A manager of three groups, each with a store of its own, and nothing in memory to find."""
    memory, pools = Memory(blocks, 3), [BlockPool(blocks) for _ in GROUPS]
    own = StoreDirectory(directory, 1 << 30)
    stores = [PrefixStore(own, bytes([number]) * 32, NBYTES) for number in range(3)]
    k = StoreOffload(GROUPS, stores, memory, pools, lambda: None, lambda: True)  # type: ignore[arg-type]
    index = PrefixCache(GROUPS, pools)
    return KVCacheManager(GROUPS, pools, index, memory, k, step_rows=512), k, memory


def fill(memory: Memory, group: int, block: int, end: int) -> None:
    memory.data[group, block] = (group * 50 + end) % 251


def test_every_group_comes_back_or_none(tmp_path: Path) -> None:
    tokens = [i % 97 for i in range(10 * KV_BLOCK + 5)]
    manager, k, memory = several(tmp_path)
    kv = manager.match_prefix(tokens)
    while kv.length < len(tokens):
        rows = min(512, len(tokens) - kv.length, manager.step_limit(kv, len(tokens)))
        assert manager.reserve(kv, rows)
        for number in range(kv.length // KV_BLOCK, (kv.length + rows) // KV_BLOCK):
            for group in (0, 1):
                fill(memory, group, kv.tables[group][number], number)
        fill(memory, 2, kv.tables[2][1], (kv.length + rows) // KV_BLOCK - 1)
        manager.commit(kv, tokens, rows)
    manager.save(kv, tokens)
    manager.release(kv)
    k.close()

    for damage in (False, True):
        manager, k, memory = several(tmp_path)
        kv = manager.match_prefix(tokens)
        assert kv.length == 0
        end = manager.loadable(kv, tokens)
        assert end == 10
        if damage:
            for path in tmp_path.glob("01010101*.kv"):
                path.write_bytes(path.read_bytes()[:-1] + b"?")
        while not manager.load(kv, tokens, end, 3):
            assert kv.length == 0
        manager.check_integrity([kv.tables])
        if damage:
            assert (kv.length, manager.held(kv)[:2]) == (0, [0, 0])
        else:
            assert kv.length == 10 * KV_BLOCK
            full, window, (slot, _) = kv.tables
            assert [int(memory.data[0, b, 0]) for b in full] == list(range(10))
            assert window[:8] == [-1] * 8
            assert [int(memory.data[1, b, 0]) for b in window[8:]] == [58, 59]
            assert int(memory.data[2, slot, 0]) == 109
        manager.release(kv)
        k.close()


@pytest.mark.parametrize("broken", range(3))
def test_an_interrupt_while_loading_leaves_a_sequence_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    tokens = [i % 97 for i in range(10 * KV_BLOCK + 5)]
    manager, k, _ = several(tmp_path)
    kv = manager.match_prefix(tokens)
    while kv.length < len(tokens):
        rows = min(512, len(tokens) - kv.length, manager.step_limit(kv, len(tokens)))
        assert manager.reserve(kv, rows)
        manager.commit(kv, tokens, rows)
    manager.save(kv, tokens)
    k.close()

    def interrupted(tokens: Sequence[int], run: BlockRun) -> int:
        if run.group == broken:
            raise KeyboardInterrupt
        return load(tokens, run)

    manager, k, _ = several(tmp_path)
    load = k.load
    monkeypatch.setattr(k, "load", interrupted)
    kv = manager.match_prefix(tokens)
    end = manager.loadable(kv, tokens)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            manager.load(kv, tokens, end, end)
        manager.check_integrity([kv.tables])
        assert manager.held(kv)[:2] == [0, 0]
    monkeypatch.setattr(k, "load", load)
    assert manager.load(kv, tokens, end, end)
    assert (kv.length, manager.held(kv)) == (10 * KV_BLOCK, [10, 2, 1])
    manager.release(kv)
    k.close()


def test_an_interrupt_while_blocks_are_taken_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, k, _ = several(tmp_path, blocks=4)
    taken = manager.take(1, 4)
    assert taken is not None

    def interrupted() -> bool:
        raise KeyboardInterrupt

    kv = manager.new()
    with monkeypatch.context() as m:
        m.setattr(k, "give_back", interrupted)
        with pytest.raises(KeyboardInterrupt):
            manager.reserve(kv, 70)
    manager.pools[1].release(taken)
    manager.check_integrity([kv.tables])
    assert manager.reserve(kv, 70)
    manager.check_integrity([kv.tables])
    k.close()


def test_nothing_is_found_that_a_window_or_a_state_is_missing_of(tmp_path: Path) -> None:
    tokens = [i % 97 for i in range(10 * KV_BLOCK + 5)]
    _, k, _ = several(tmp_path)
    # Behind block 10 a window of 100 sees blocks 8 and 9.
    k.save_now(
        tokens, [BlockRun(0, 0, tuple(range(10))), BlockRun(1, 9, (0,)), BlockRun(2, 9, (0,))]
    )
    assert k.find(tokens, 0, 10) == 0
    k.save_now(tokens, [BlockRun(1, 8, (1,))])
    assert k.find(tokens, 0, 10) == 10
    assert k.find(tokens, 0, 9) == 0
    k.close()


@pytest.mark.parametrize(("token_s", "came"), [(None, 7), (1e6, 7), (1e-12, 2)])
def test_loading_ends_where_computing_is_faster(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, token_s: float | None, came: int
) -> None:
    monkeypatch.setattr(store_offload, "_SLICE_BYTES", 2 * NBYTES)
    slow.may_write.set()
    k, pool, memory = offload(slow, token_s=token_s)
    hand_over(k, pool, memory, "abcdefg")
    k.close()
    k, pool, memory = offload(slow, token_s=token_s)
    tokens = [*chain("abcdefg"), 1]
    for _ in range(2):
        assert k.find(tokens, 0, 7) == 7
        assert k.is_tried()
        assert k.load(tokens, BlockRun(0, 0, tuple(range(7)))) == came
        for block, right in zip(memory.data[0, :came], content(chain("abcdefg")), strict=False):
            assert block.tobytes() == right.tobytes()
        if came < 7:
            # Not tried for a while, and then again.
            assert [k.is_tried() for _ in range(15)] == [False] * 15
    k.close()


def test_who_looks_up_does_not_have_slow_loading_tried_sooner(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_offload, "_SLICE_BYTES", 2 * NBYTES)
    slow.may_write.set()
    k, pool, memory = offload(slow, token_s=1e-12)
    hand_over(k, pool, memory, "abcdefg")
    k.close()
    k, pool, memory = offload(slow, token_s=1e-12)
    tokens = [*chain("abcdefg"), 1]
    manager = KVCacheManager(FULL, [pool], NoPrefixCache(), memory, k, step_rows=512)
    kv = manager.new()
    assert manager.loadable(kv, tokens) == 7
    manager.load(kv, tokens, 7, 7)
    manager.release(kv)
    # It is there, whoever asks and however often.
    assert [manager.known(tokens) for _ in range(40)] == [(0, 7 * KV_BLOCK)] * 40
    kv = manager.new()
    assert [manager.loadable(kv, tokens) for _ in range(16)] == [0] * 15 + [7]
    k.close()
