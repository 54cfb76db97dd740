"""The ledger: who owns how many bytes of memory, held under a budget at all times."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from strata.errors import StrataError
from strata.sizes import format_size


class LedgerError(StrataError):
    """Memory that nobody may take, or that was taken behind the ledger's back."""


class Ledger:
    """Bytes by owner. ``budget`` None holds nothing back and still keeps the books.

    Whatever is large is entered here before it is allocated. ``margin`` are bytes that allocators
    and page tables may take beyond what was entered. Safe from several threads.
    """

    def __init__(self, budget: int | None = None, margin: int = 0) -> None:
        self.budget = budget
        self.margin = margin
        self._owned: dict[str, int] = {}
        self._lock = threading.Lock()
        self._given_late: deque[tuple[str, int]] = deque()

    @property
    def owned(self) -> Mapping[str, int]:
        """Bytes by owner, as of now."""
        with self._settled():
            return dict(self._owned)

    @property
    def total(self) -> int:
        """Bytes of all owners."""
        with self._settled():
            return sum(self._owned.values())

    def take(self, owner: str, nbytes: int) -> None:
        """Enter ``nbytes`` more for an owner; LedgerError, and nothing entered, without room."""
        if nbytes < 0:
            raise LedgerError(f"{owner} cannot take {nbytes} bytes")
        with self._settled():
            total = sum(self._owned.values()) + nbytes
            if self.budget is not None and total > self.budget:
                raise LedgerError(
                    f"{owner} would take {format_size(nbytes)}, and all together "
                    f"{format_size(total)}: more than the {format_size(self.budget)} given; "
                    f"give more memory, or ask for a shorter context"
                )
            self._owned[owner] = self._owned.get(owner, 0) + nbytes

    def give(self, owner: str, nbytes: int) -> None:
        """Enter that an owner gave ``nbytes`` back."""
        with self._settled():
            self._give(owner, nbytes)

    def give_late(self, owner: str, nbytes: int) -> None:
        """The same from a finalizer, which may run in the middle of anything, also of this."""
        self._given_late.append((owner, nbytes))

    @contextmanager
    def lent(self, owner: str, nbytes: int) -> Iterator[None]:
        """``nbytes`` more for an owner as long as the block runs; LedgerError without room."""
        self.take(owner, nbytes)
        try:
            yield
        finally:
            self.give(owner, nbytes)

    def check_integrity(self, resident: int) -> None:
        """LedgerError if the process's ``resident`` bytes are more than was entered.

        They may be fewer: memory counts when it is allocated and is resident once it is touched.
        """
        total = self.total
        if self.budget is not None and total > self.budget:
            raise LedgerError(f"{total} bytes are owned, more than the budget of {self.budget}")
        if resident > total + self.margin:
            raise LedgerError(
                f"{resident} bytes are resident, but only {total} are owned "
                f"(and {self.margin} allowed beside them): somebody allocates without asking"
            )

    @contextmanager
    def _settled(self) -> Iterator[None]:
        with self._lock:
            while self._given_late:
                self._give(*self._given_late.popleft())
            yield

    def _give(self, owner: str, nbytes: int) -> None:
        held = self._owned.get(owner, 0)
        if not 0 <= nbytes <= held:
            raise LedgerError(f"{owner} gives {nbytes} bytes back but holds {held}")
        self._owned[owner] = held - nbytes


class LedgerAccount:
    """What one owner has in a ledger, where the want of room is no error. Any thread may call;
    ``give`` also in a finalizer."""

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger = ledger
        self._owner = owner

    def take(self, nbytes: int) -> bool:
        """Enter so much more; False, and nothing entered, without room."""
        try:
            self._ledger.take(self._owner, nbytes)
        except LedgerError:
            return False
        return True

    def give(self, nbytes: int) -> None:
        """Enter that so much is given back."""
        self._ledger.give_late(self._owner, nbytes)
