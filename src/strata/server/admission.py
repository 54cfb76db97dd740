"""Bytes that requests may take beside KV, shared out among those that are under way.

What a body can become is known by counting before anything is parsed: its bytes, its values and the
width of its widest character. That much is entered in the ledger until the request has ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import strata._native as _native
from strata.memory import Ledger, LedgerError
from strata.records import dataclass
from strata.server.errors import ApiError
from strata.sizes import format_size

OWNER = "requests"

COPIES = 5
"""Of a body's texts at once: in the request, the message, the prompt and while these are made."""

VALUE = 400
"""Bytes of a JSON value: parsed, validated, as a field of a message and in what is wrong with it.
Measured with the lists and objects of the smallest members, which are the worst."""

UNCOUNTED = 16 << 10
"""Bytes of requests that are too small to count: as many as may wait are the server's own."""

UPLOAD_BYTES_S = 16e6
"""At which large bodies are taken, all together: taking them is work of the thread that delivers
tokens."""

_PATIENCE_S = 2.0
"""For which a request waits until others have ended."""


@dataclass(frozen=True)
class Measure:
    """What a JSON body can become. ``width`` is of its widest character, in bytes."""

    nbytes: int
    values: int
    depth: int
    width: int

    @classmethod
    def of(cls, body: bytes, most: int) -> Measure:
        """Of a body that need not be JSON; one with more than ``most`` values is not looked at
        beyond them."""
        return cls(len(body), *_native.measure_json(body, most))

    @property
    def cost(self) -> int:
        """Bytes of memory that serving it takes at most, beside KV and the answer."""
        return self.nbytes * (2 + COPIES * self.width) + self.values * VALUE


class Admission:
    """Shares out ``capacity`` bytes. For the event loop's thread."""

    def __init__(self, ledger: Ledger, capacity: int, patience_s: float = _PATIENCE_S) -> None:
        self.capacity = capacity
        self.held = 0
        self._ledger = ledger
        self._patience_s = patience_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._uploaded_at = 0.0

    async def take_time(self, nbytes: int) -> None:
        """Wait as long as a part of a large body is worth, behind those of others."""
        now = asyncio.get_running_loop().time()
        self._uploaded_at = max(self._uploaded_at, now) + nbytes / UPLOAD_BYTES_S
        await asyncio.sleep(self._uploaded_at - now)

    @property
    def largest_body(self) -> int:
        """Bytes of a body that may be served if it is simple."""
        return self.capacity // Measure(1, 0, 0, 1).cost

    @contextmanager
    def request(self) -> Iterator[Share]:
        """A request's share; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def try_take(self, nbytes: int) -> bool:
        """Take bytes if there are so many."""
        if self.held + nbytes > self.capacity:
            return False
        try:
            self._ledger.take(OWNER, nbytes)
        except LedgerError:
            return False
        self.held += nbytes
        return True

    async def take(self, nbytes: int) -> bool:
        """Take bytes, after those who came before; False if it takes too long."""
        if not self._waiting and self.try_take(nbytes):
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (nbytes, turn)
        self._waiting.append(entry)
        try:
            await asyncio.wait([turn], timeout=self._patience_s)
        except asyncio.CancelledError:
            if turn.done():
                self.give(nbytes)
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        return turn.done()

    def give(self, nbytes: int) -> None:
        """Give bytes back, and pass them on."""
        self._ledger.give(OWNER, nbytes)
        self.held -= nbytes
        while self._waiting and self.try_take(self._waiting[0][0]):
            self._waiting.popleft()[1].set_result(None)


class Share:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held = 0
        self.text_bytes = 0
        """What the body's texts may take once, where that is large enough to count."""

    def arrived(self, nbytes: int) -> None:
        """Bytes of a body, which are held in parts and then as one; ApiError without room."""
        self.add(2 * nbytes)

    def add(self, nbytes: int) -> None:
        """So much more at once; ApiError if there is no room."""
        if not self._admission.try_take(nbytes):
            raise ApiError(503, "too many large requests at once; try again later")
        self._held += nbytes

    async def raise_to(self, measure: Measure, cost: int | None = None) -> None:
        """As much as a whole body needs (None: to serve it here); ApiError if that is never there,
        or not soon."""
        cost = measure.cost if cost is None else cost
        if cost > UNCOUNTED:
            self.text_bytes = measure.nbytes * measure.width
            await self.take(
                cost - self._held,
                f"the request has {measure.nbytes} bytes and {measure.values} JSON values, which "
                f"may take {format_size(cost)} of memory",
            )

    async def take(self, nbytes: int, what: str) -> None:
        """So much more, once others have ended; ApiError, that says ``what`` is too much, if that
        is never there, or not soon."""
        if nbytes <= 0:
            return
        self.check(nbytes, what)
        if not await self._admission.take(nbytes):
            raise ApiError(503, "other requests take the memory that this one needs; try again")
        self._held += nbytes

    def check(self, nbytes: int, what: str) -> None:
        """ApiError, that says ``what`` is too much, if so much more is never there."""
        capacity = self._admission.capacity
        if self._held + nbytes > capacity:
            raise ApiError(
                413, f"{what}; there are {format_size(capacity)} for all requests together"
            )

    @asynccontextmanager
    async def lent(self, nbytes: int, what: str) -> AsyncIterator[None]:
        """``take`` for a while."""
        await self.take(nbytes, what)
        try:
            yield
        finally:
            self._held -= nbytes
            self._admission.give(nbytes)

    def give_back(self) -> None:
        """All of it."""
        held, self._held = self._held, 0
        if held:
            self._admission.give(held)


SHARE: ContextVar[Share] = ContextVar("share")
"""Of the request that is served."""
