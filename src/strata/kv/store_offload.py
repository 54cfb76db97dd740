"""Brings full blocks to a store in the background, and back when they are wanted."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from itertools import chain
from time import perf_counter

from strata.backends.base import KV_BLOCK, StateCache
from strata.kv.offload import BlockRun
from strata.kv.pool import BlockPool
from strata.kv.sequence import seen_blocks
from strata.kv.store import Buffer, PrefixStore, block_keys
from strata.program import StateGroup
from strata.records import dataclass

_log = logging.getLogger("strata.kv")

_CLOSE_S = 30.0
"""For which ``close`` waits: a disk that takes longer to write what is pending is stuck."""

_FIRST_BYTES_S = 500e6
"""Taken for the speed of the disk until it is measured."""

_SLICE_BYTES = 64 << 20
"""After each of which loading is compared with computing again."""

_NOT_TRIED = 16
"""Times that something is not loaded after that was slower, until it is tried again."""


@dataclass
class _Work:
    """What waits to be kept: tokens and the runs of their blocks."""

    tokens: list[int] = field(default_factory=list)
    runs: tuple[BlockRun, ...] = ()

    def blocks(self, group: int) -> list[int]:
        return [block for run in self.runs if run.group == group for block in run.blocks]


class StoreOffload:
    """An Offload over one PrefixStore a group. One thread writes; all methods are the engine's
    thread's.

    Blocks that wait to be written are held and cannot change meanwhile. Of each group they are at
    most a quarter of the pool, or those of one sequence: what would exceed that is not kept.
    ``token_s`` says what computing a token takes, None while that is not known. ``unchanged`` says
    whether the model is still the one that the stores are named after: KV is neither kept nor
    given once it is not.
    """

    def __init__(
        self,
        groups: Sequence[StateGroup],
        stores: Sequence[PrefixStore],
        state: StateCache,
        pools: Sequence[BlockPool],
        token_s: Callable[[], float | None],
        unchanged: Callable[[], bool],
    ) -> None:
        self._groups, self.stores = tuple(groups), tuple(stores)
        self._state, self._pools = state, tuple(pools)
        self._token_s = token_s
        self._unchanged = unchanged
        self._stale = False
        self._changed = threading.Condition()
        self._pending: deque[_Work] = deque()
        self._writing: _Work | None = None
        self._done: list[_Work] = []
        self._closed = False
        self._block_s = sum(map(state.block_nbytes, range(len(groups)))) / _FIRST_BYTES_S
        self._thread: threading.Thread | None = None
        self._not_tried = 0
        self._timed = [(0, 0.0)] * len(self._groups)

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """See Offload."""
        if most <= first or self._is_stale():
            return first
        kept: list[list[bool]] = []
        for store in self.stores:
            keys = block_keys(store.identity, tokens[: most * KV_BLOCK])[first:]
            kept.append(store.kept(keys))
        for end in range(most, first, -1):
            if all(
                all(row[number - first] for number in self._needed(group, end) if number >= first)
                for row, group in zip(kept, self._groups, strict=True)
            ):
                return end
        return first

    def is_tried(self) -> bool:
        """See Offload."""
        self._not_tried = max(0, self._not_tried - 1)
        return not self._not_tried

    @staticmethod
    def _needed(group: StateGroup, end: int) -> Iterable[int]:
        """The blocks of a group that going on behind block ``end`` needs."""
        return (end - 1,) if group.recurrent else chain(*seen_blocks(group, end * KV_BLOCK))

    def load(self, tokens: Sequence[int], run: BlockRun) -> int:
        """See Offload. Where computing is faster than what was just measured, it ends early."""
        store, end = self.stores[run.group], run.first + len(run.blocks)
        keys = block_keys(store.identity, tokens[: end * KV_BLOCK])[run.first :]
        most = max(1, _SLICE_BYTES // self._state.block_nbytes(run.group))
        loaded = 0
        while loaded < len(keys):
            wanted, first, started = keys[loaded : loaded + most], loaded, perf_counter()

            def put(number: int, data: Buffer, first: int = first) -> None:
                self._state.write(run.group, run.blocks[first + number], data)

            count = store.load(wanted, put)
            loaded += count
            if count < len(wanted):
                break
            if self._is_slow(run.group, count, perf_counter() - started, most):
                self._not_tried = _NOT_TRIED
                group = self._groups[run.group]
                # Windows and states are kept for some ends alone.
                if len(self._groups) == 1 and not (group.window or group.recurrent):
                    break
        if loaded > most:
            store.touch(keys[:loaded])
        return loaded

    def _is_slow(self, number: int, blocks: int, seconds: float, most: int) -> bool:
        """Whether computing the last ``most`` blocks of a group, by now or by several calls, would
        have been faster than loading them was."""
        before, spent = self._timed[number]
        blocks, seconds = before + blocks, spent + seconds
        whole = blocks >= most
        self._timed[number] = (0, 0.0) if whole else (blocks, seconds)
        token_s = self._token_s()
        slow = whole and token_s is not None and seconds > blocks * KV_BLOCK * token_s
        if slow:
            _log.info("loading KV from the store is slower than computing it: left for a while")
        return slow

    def save(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """See Offload."""
        self.collect()
        if not runs or self._closed or not self._has_room(runs):
            return
        for run in runs:
            self._pools[run.group].share(run.blocks)
        with self._changed:
            self._pending.append(_Work(list(tokens), tuple(runs)))
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="strata-kv", daemon=True)
            self._thread.start()

    def _has_room(self, runs: Sequence[BlockRun]) -> bool:
        for run in runs:
            held = len(self.blocks(run.group))
            if held and held + len(run.blocks) > self._pools[run.group].blocks // 4:
                return False
        return True

    def save_now(self, tokens: Sequence[int], runs: Sequence[BlockRun]) -> None:
        """See Offload."""
        started = perf_counter()
        new = self._write(_Work(list(tokens), tuple(runs)))
        if new:
            self._block_s += 0.25 * ((perf_counter() - started) / new - self._block_s)

    def _write(self, work: _Work) -> int:
        """Keep what is not kept yet; how many blocks of positions were new."""
        new = 0
        if self._is_stale():
            return new
        for run in work.runs:
            store = self.stores[run.group]
            keys = block_keys(store.identity, work.tokens)[run.first :][: len(run.blocks)]
            new = max(new, len(keys) - store.find(keys))

            def get(number: int, out: Buffer, run: BlockRun = run) -> None:
                self._state.read(run.group, run.blocks[number - run.first], out)

            store.save(work.tokens, run.first, len(run.blocks), get)
        return new

    def _is_stale(self) -> bool:
        if not self._stale and not self._unchanged():
            self._stale = True
            _log.warning("the model's files were changed: KV is no longer kept, nor found, on disk")
        return self._stale

    def pays(self, blocks: int) -> bool:
        """See Offload. Reading is taken to be as fast as writing was."""
        token_s = self._token_s()
        return token_s is not None and 2 * self._block_s < KV_BLOCK * token_s

    def collect(self) -> None:
        """See Offload."""
        with self._changed:
            done, self._done = self._done, []
        for work in done:
            for run in work.runs:
                self._pools[run.group].release(run.blocks)

    def give_back(self) -> bool:
        """See Offload."""
        with self._changed:
            held = bool(self._pending or self._writing or self._done)
            self._done += self._pending
            self._pending.clear()
            self._changed.wait_for(lambda: self._writing is None)
        self.collect()
        return held

    def blocks(self, group: int) -> list[int]:
        """See Offload."""
        with self._changed:
            every = [*self._pending, *self._done]
            if self._writing is not None:
                every.append(self._writing)
            return [block for work in every for block in work.blocks(group)]

    def close(self) -> None:
        """See Offload."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        self.collect()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                self._writing = self._pending.popleft()
            try:
                self._write(self._writing)
            except Exception:
                _log.exception("a prefix was not kept")
            with self._changed:
                self._done.append(self._writing)
                self._writing = None
                self._changed.notify_all()
