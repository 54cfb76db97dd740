"""The block pool: integers, references, and books that add up."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from strata.kv import BlockPool, PoolError

BLOCKS = 12


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of allocations, shares and releases, with the holders kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, BLOCKS + 1))
    def allocate(self, count: int) -> None:
        free = self.pool.free
        if count > free:
            with pytest.raises(PoolError):
                self.pool.allocate(count)
            assert self.pool.free == free
        else:
            table = self.pool.allocate(count)
            assert not {b for other in self.tables for b in other} & set(table)
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.share(table)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(at))

    @invariant()
    def books_agree(self) -> None:
        self.pool.check_integrity(self.tables)
        held = {b for table in self.tables for b in table}
        assert self.pool.free == BLOCKS - len(held)


TestPool = PoolMachine.TestCase


def test_what_is_not_held_cannot_be_released_or_shared() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    for wrong in ([3], [-1], [4], [table[0], table[0]]):
        with pytest.raises(PoolError):
            pool.release(wrong)
    with pytest.raises(PoolError):
        pool.share([3])
    pool.check_integrity([table])
    pool.release(table)
    with pytest.raises(PoolError):
        pool.release(table)


def test_a_leak_is_noticed() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    with pytest.raises(PoolError):
        pool.check_integrity([])
    with pytest.raises(PoolError):
        pool.check_integrity([table, table])


def test_low_numbers_come_first() -> None:
    pool = BlockPool(8)
    assert pool.allocate(3) == [0, 1, 2]
    pool.release([0, 1, 2])
    assert pool.allocate(2) == [0, 1]
