"""The ledger adds up, refuses before it is too late, and notices what it was not told."""

from __future__ import annotations

import threading

import pytest

from strata.memory import Ledger, LedgerAccount, LedgerError, peak_bytes, process_memory


def test_owners_add_up() -> None:
    ledger = Ledger(100)
    ledger.take("weights", 60)
    ledger.take("kv", 30)
    ledger.take("weights", 10)
    assert dict(ledger.owned) == {"weights": 70, "kv": 30}
    assert ledger.total == 100
    ledger.give("weights", 70)
    assert ledger.total == 30


def test_what_is_given_late_is_given() -> None:
    ledger = Ledger(100)
    account = LedgerAccount(ledger, "guard")
    assert account.take(70)
    assert not account.take(40)
    with ledger._lock:
        # As a finalizer does, in the middle of anything.
        account.give(70)
    assert ledger.owned["guard"] == 0
    assert account.take(100)


def test_what_does_not_fit_is_refused_and_not_entered() -> None:
    ledger = Ledger(100)
    ledger.take("weights", 60)
    with pytest.raises(LedgerError, match=r"kv would take 41 B.*101 B.*100 B given"):
        ledger.take("kv", 41)
    assert dict(ledger.owned) == {"weights": 60}
    ledger.take("kv", 40)


def test_without_a_budget_nothing_is_refused() -> None:
    ledger = Ledger()
    ledger.take("weights", 1 << 60)
    assert ledger.total == 1 << 60


@pytest.mark.parametrize("nbytes", [-1, 6])
def test_nobody_gives_back_more_than_they_hold(nbytes: int) -> None:
    ledger = Ledger()
    ledger.take("kv", 5)
    with pytest.raises(LedgerError):
        ledger.give("kv", nbytes)
    with pytest.raises(LedgerError):
        ledger.take("kv", -1)


def test_memory_that_nobody_owns_is_noticed() -> None:
    ledger = Ledger(1000, margin=10)
    ledger.take("weights", 100)
    ledger.check_integrity(110)
    ledger.check_integrity(1)
    with pytest.raises(LedgerError, match="without asking"):
        ledger.check_integrity(111)


def test_many_threads_take_together() -> None:
    ledger = Ledger(1 << 40)

    def work() -> None:
        for _ in range(1000):
            ledger.take("a", 3)
            ledger.give("a", 2)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert ledger.total == 8000


def test_the_system_counts_what_we_touch() -> None:
    before = process_memory().total
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    grown = process_memory().total - before
    assert 60 << 20 < grown < 80 << 20
    assert peak_bytes() >= process_memory().total
    del block
