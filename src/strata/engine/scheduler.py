"""Which sequences advance by how many tokens in the next step. Integers only.

There are no phases: a sequence has computed positions and a target, and is advanced towards it. A
long prompt is thus taken in pieces, beside sequences that need one position each. Sequences are
served first come, first served, within a budget of tokens a step. A sequence is let in when the
pool holds blocks for all the positions it can ever have, so that none has to be stopped later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from strata.backends.base import KV_BLOCK
from strata.kv import BlockPool


def blocks_for(positions: int) -> int:
    """KV blocks that hold ``positions`` positions."""
    return -(-positions // KV_BLOCK)


@dataclass
class Sequence:
    """Positions computed, wanted so far, and at most; ``table`` lists its KV blocks."""

    id: int
    target: int
    most: int
    computed: int = 0
    table: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Advance:
    """Compute positions ``past .. past + rows`` of a sequence; ``reaches`` its target or not."""

    id: int
    past: int
    rows: int
    reaches: bool
    table: tuple[int, ...]


class Scheduler:
    """Sequences that wait and sequences that run."""

    def __init__(self, pool: BlockPool, *, parallel: int, token_budget: int) -> None:
        self._pool = pool
        self._parallel = parallel
        self._token_budget = token_budget
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def computed(self, id: int) -> int:
        """Positions computed of a sequence; 0 unless it runs."""
        sequence = self._running.get(id)
        return 0 if sequence is None else sequence.computed

    def add(self, id: int, target: int, most: int) -> None:
        """Queue a sequence of ``target`` known positions that will never need over ``most``."""
        self._waiting.append(Sequence(id, target, most))

    def plan(self) -> list[Advance]:
        """The advances of the next step; empty when there is nothing to do."""
        self._admit()
        advances, budget = [], self._token_budget
        for s in self._running.values():
            rows = min(s.target - s.computed, budget)
            if rows:
                reaches = s.computed + rows == s.target
                advances.append(Advance(s.id, s.computed, rows, reaches, tuple(s.table)))
                budget -= rows
        return advances

    def commit(self, advances: Iterable[Advance]) -> None:
        """Record that ``advances`` were computed."""
        for advance in advances:
            self._running[advance.id].computed += advance.rows

    def extend(self, id: int) -> None:
        """One more position is wanted of a running sequence."""
        self._running[id].target += 1

    def remove(self, id: int) -> None:
        """Forget a sequence, waiting or running, and free its blocks. Unknown ones are ignored."""
        sequence = self._running.pop(id, None)
        if sequence is not None:
            self._pool.release(sequence.table)
        else:
            self._waiting = deque(s for s in self._waiting if s.id != id)

    def check_integrity(self) -> None:
        """Raise PoolError unless the pool's books agree with the running sequences' tables."""
        self._pool.check_integrity(s.table for s in self._running.values())

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._parallel:
            needed = blocks_for(self._waiting[0].most)
            if needed > self._pool.free:
                return
            sequence = self._waiting.popleft()
            sequence.table = self._pool.allocate(needed)
            self._running[sequence.id] = sequence
