"""Brings full blocks to a store in the background, and back when they are wanted."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from strata.backends.base import KVCache
from strata.kv.pool import BlockPool
from strata.kv.store import PrefixStore, block_keys

_log = logging.getLogger("strata.kv")

_CLOSE_S = 30.0
"""For which ``close`` waits: a disk that takes longer to write what is pending is stuck."""

_FIRST_BYTES_S = 500e6
"""Taken for the speed of the disk until it is measured."""


class StoreKeeper:
    """A Keeper over a PrefixStore. One thread writes; all methods are the engine's thread's.

    Blocks that wait to be written are held and cannot change meanwhile. Together they are at most
    a quarter of the pool, or those of one sequence: what would exceed that is not kept.
    """

    def __init__(self, store: PrefixStore, kv: KVCache, pool: BlockPool) -> None:
        self._store = store
        self._kv = kv
        self._pool = pool
        self._state = threading.Condition()
        self._pending: deque[tuple[list[int], list[int]]] = deque()
        self._writing: list[int] | None = None
        self._done: list[int] = []
        self._closed = False
        self._block_s = kv.nbytes / kv.blocks / _FIRST_BYTES_S
        self._thread: threading.Thread | None = None

    def find(self, tokens: Sequence[int], first: int, most: int) -> int:
        """See Keeper."""
        return self._store.find(block_keys(self._store.identity, tokens)[first:most])

    def load(self, tokens: Sequence[int], first: int, blocks: Sequence[int]) -> int:
        """See Keeper."""
        keys = block_keys(self._store.identity, tokens)[first : first + len(blocks)]
        return self._store.load(keys, [self._kv.block(block) for block in blocks])

    def save(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """See Keeper."""
        self.collect()
        held = len(self.blocks())
        if not blocks or self._closed or (held and held + len(blocks) > self._pool.blocks // 4):
            return
        self._pool.share(blocks)
        with self._state:
            self._pending.append((list(tokens), list(blocks)))
            self._state.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="strata-kv", daemon=True)
            self._thread.start()

    def save_now(self, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """See Keeper."""
        keys = block_keys(self._store.identity, tokens)
        new = len(blocks) - self._store.find(keys)
        started = perf_counter()
        self._store.save(tokens, [self._kv.block(block) for block in blocks])
        if new:
            self._block_s += 0.25 * ((perf_counter() - started) / new - self._block_s)

    def seconds(self, blocks: int) -> float | None:
        """See Keeper. Reading is taken to be as fast as writing was."""
        return 2 * blocks * self._block_s

    def collect(self) -> None:
        """See Keeper."""
        with self._state:
            done, self._done = self._done, []
        self._pool.release(done)

    def give_back(self) -> bool:
        """See Keeper."""
        held = bool(self.blocks())
        with self._state:
            for _, blocks in self._pending:
                self._done += blocks
            self._pending.clear()
            self._state.wait_for(lambda: self._writing is None)
        self.collect()
        return held

    def blocks(self) -> list[int]:
        """See Keeper."""
        with self._state:
            waiting = [block for _, blocks in self._pending for block in blocks]
            return [*waiting, *(self._writing or ()), *self._done]

    def close(self) -> None:
        """See Keeper."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
        self.collect()

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                tokens, self._writing = self._pending.popleft()
            try:
                self._store.save(tokens, [self._kv.block(block) for block in self._writing])
            except Exception:
                _log.exception("a prefix was not kept")
            with self._state:
                self._done += self._writing
                self._writing = None
                self._state.notify_all()
