"""Models that come and go within one budget; see the package."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from strata.errors import StrataError
from strata.memory import Ledger
from strata.server.errors import ApiError, ShuttingDown
from strata.server.fleet.allotment import Way, Wish, allot, at
from strata.server.fleet.children import Child, how_it_ended
from strata.server.fleet.entries import Entries, Entry
from strata.server.fleet.proxy import Address, WorkerGone, asked_json
from strata.server.fleet.wire import ProcessFailed
from strata.sizes import format_size

_log = logging.getLogger("strata.server")

HELPER_BYTES = 160 << 20
"""Of a process that reads headers, or downloads."""

KEEP_ALIVE_S = 300.0
"""As Ollama has it."""

_HALF_LIFE_S = 300.0
"""After which a request counts half, in how often a model is asked."""

_LEAST_WEIGHT = 0.01
_BUSY_WEIGHT = 4.0
"""How much dearer it is to unload a model that is answering: whoever asks next waits for its end,
too."""

_LOAD_BYTES_S = 1e9
"""A modest disk's, so that loading is dearer the larger a model is."""

_START_S = 2.0
"""For a process to begin."""

_TRIES = 10
"""For a change that turns out to need more than its Plan thought."""

_TICK_S = 0.2


@dataclass(frozen=True)
class Card:
    """What is known of a model from its header; ``helper.describe`` gives it."""

    path: Path
    ways: tuple[Way, ...]
    context: int
    size: int
    digest: str
    modified: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    embeds: bool
    template: str

    @classmethod
    def of(cls, told: dict[str, Any]) -> Card:
        """As a helper told it."""
        values = {k: v for k, v in told.items() if k not in ("curve", "path")}
        return cls(Path(told["path"]), tuple(Way(*pair) for pair in told["curve"]), **values)


@dataclass(eq=False)
class Member:
    """A model, loaded or not.

    ``leases`` are requests that it has, of which some are ``answering``, and some ``waiting`` for
    it to be there, to whom an answer is ``owed`` then. ``share`` is its bytes, 0 when it is not
    there, and ``least`` what it turned out to need. One that is ``leaving`` gets no more to answer.
    """

    entry: Entry
    card: Card | None = None
    wrong: str | None = None
    child: Child | None = None
    address: Address | None = None
    share: int = 0
    least: int = 0
    context: int = 0
    leases: int = 0
    answering: int = 0
    waiting: set[object] = field(default_factory=set)
    owed: set[object] = field(default_factory=set)
    leaving: bool = False
    keep_alive_s: float = KEEP_ALIVE_S
    expires: float = 0.0
    progress: tuple[str, int, int | None] = ("waiting", 0, None)
    loading: asyncio.Task[None] | None = None
    _asked: float = 0.0
    _asked_at: float = field(default_factory=monotonic)

    @property
    def loaded(self) -> bool:
        """Whether requests can be passed on."""
        return self.address is not None and self.child is not None and not self.child.ended

    def weight(self) -> float:
        """How often it was asked lately."""
        age = monotonic() - self._asked_at
        return float(max(self._asked * 0.5 ** (age / _HALF_LIFE_S), _LEAST_WEIGHT))

    def count(self) -> None:
        """It is asked once more."""
        self._asked, self._asked_at = self.weight() + 1.0, monotonic()

    def ways(self) -> list[Way]:
        """Shares that it may have, with the one that it has."""
        assert self.card is not None
        found = [way for way in self.card.ways if way.nbytes >= self.least]
        found = found or [at(self.card.ways, self.least)]
        if self.share and self.share >= self.least:
            found.append(at(found, self.share))
        return sorted(set(found), key=lambda way: way.nbytes)

    def away_s(self) -> float:
        """What it costs whoever asks when it is not there: loading it, an answer then, and loading
        again whoever has to go for it."""
        assert self.card is not None
        return self.card.ways[-1].seconds + 2 * (_START_S + self.card.size / _LOAD_BYTES_S)


class Fleet:
    """See the package. ``own_bytes`` are those of the process that has the port, its requests
    included. For the event loop's thread."""

    def __init__(
        self,
        entries: Entries,
        budget: int,
        own_bytes: int,
        *,
        defaults: dict[str, Any],
        worker_settings: dict[str, Any],
        keep_alive_s: float = KEEP_ALIVE_S,
        grace_s: float = 10.0,
    ) -> None:
        self.entries = entries
        self.ledger = Ledger(budget)
        self.ledger.take("front", own_bytes)
        self.keep_alive_s = keep_alive_s
        self.closing = False
        self._defaults, self._worker_settings, self._grace_s = defaults, worker_settings, grace_s
        self._members: dict[str, Member] = {}
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._cards: dict[str, Card] = {}
        self._described: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._watching: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin: headers are read before there is any model."""
        self._described = asyncio.create_task(self._describe_all(list(self.members())))
        self._ticking = asyncio.create_task(self._tick())

    def members(self) -> Sequence[Member]:
        """All of them, in the order of their names as they were given."""
        for entry in list(self.entries):
            if entry.name not in self._members or self._members[entry.name].entry != entry:
                before = self._members.get(entry.name)
                if before is None or before.child is None:
                    self._members[entry.name] = Member(entry)
        return [self._members[e.name] for e in list(self.entries)]

    def find(self, name: str | None) -> Member:
        """The member that is asked for; the first where none is named. ApiError 404."""
        members = {member.entry.name: member for member in self.members()}
        entry = self.entries.find(name) if name else self.entries.first
        if entry is None:
            there = ", ".join(list(members)[:20]) or "none: pull one"
            raise ApiError(
                404,
                f"there is no model {(name or '')[:200]!r} here; this server has: {there}",
                param="model",
                code="model_not_found",
            )
        return members[entry.name]

    @property
    def loaded(self) -> list[Member]:
        """Those that are there, the one that was asked last first."""
        found = [member for member in self._members.values() if member.loaded]
        return sorted(found, key=lambda member: -member._asked_at)

    @asynccontextmanager
    async def lease(self, member: Member, keep_alive_s: float | None) -> AsyncIterator[None]:
        """A request's hold on a model: it is not unloaded meanwhile, and for ``keep_alive_s`` after
        it (None: as the entry or the server has it)."""
        member.leases += 1
        member.count()
        try:
            yield
        finally:
            member.leases -= 1
            kept = member.entry.keep_alive_s if keep_alive_s is None else keep_alive_s
            member.keep_alive_s = self.keep_alive_s if kept is None else kept
            member.expires = monotonic() + max(member.keep_alive_s, 0.0)
            self._tell_change()

    async def ready(self, member: Member) -> Address:
        """Where a model answers, once it does; it is not unloaded before ``answered``. ApiError or
        ShuttingDown if it cannot be loaded."""
        turn = object()
        member.waiting.add(turn)
        try:
            while True:
                if self.closing:
                    raise ShuttingDown("the server is shutting down")
                if member.loaded and (turn in member.owed or not member.leaving):
                    assert member.address is not None
                    member.answering += 1
                    return member.address
                if member.loading is None or member.loading.done():
                    member.loading = asyncio.create_task(self._load(member))
                    member.loading.add_done_callback(_heard)
                await asyncio.shield(member.loading)
        finally:
            member.waiting.discard(turn)
            member.owed.discard(turn)
            self._tell_change()

    def answered(self, member: Member) -> None:
        """An answer has ended, however."""
        member.answering -= 1
        self._tell_change()

    async def card(self, member: Member) -> Card:
        """What a model is. ApiError if it cannot be read."""
        if member.card is None:
            if self._described is not None and not self._described.done():
                await asyncio.shield(self._described)
            if member.card is None and member.wrong is None:
                async with self._aside("reading a header"):
                    await self._describe([member])
        if member.card is None:
            # Next time it is looked at again.
            wrong, member.wrong = member.wrong, None
            raise ApiError(500, f"{member.entry.name} cannot be served: {wrong}")
        return member.card

    async def unload(self, member: Member) -> bool:
        """Let a model go once nobody asks it; whether it was there."""
        if member.child is None:
            return False
        member.leaving = True
        try:
            async with self._changing:
                await self._idle(member)
                await self._end(member)
        finally:
            member.leaving = False
        return True

    def forget(self, member: Member) -> None:
        """An entry is no more, or another; the model is not loaded."""
        self._members.pop(member.entry.name, None)

    async def set_budget(self, budget: int) -> None:
        """Another budget for all; ApiError if what is there cannot be brought within it."""
        async with self._changing:
            before = self.ledger.budget or 0
            room = self._room() + budget - before
            if room < 0 or (budget < before and await self._arrange([], room) is None):
                raise ApiError(400, f"{format_size(budget)} are too little for the server alone")
            self.ledger.budget = budget
            await self._grow()

    async def fetch(self, reference: str) -> AsyncIterator[dict[str, Any]]:
        """Download a model: progress, and at last ``fetched`` with its path. ApiError."""
        async with self._aside("downloading"):
            child = await Child.start("helper", {"fetch": reference})
            try:
                async for said in child.told():
                    yield said
            except ProcessFailed as error:
                raise ApiError(404 if error.usage else 500, str(error)) from None
            finally:
                await child.end()

    async def close(self) -> None:
        """End all processes; those that answer have the grace."""
        self.closing = True
        for task in (self._ticking, self._described):
            if task is not None:
                task.cancel()
        children = [m.child for m in self._members.values() if m.child is not None]
        await asyncio.gather(*(child.end(self._grace_s) for child in children))

    def cut_off(self) -> None:
        """End them at once."""
        for member in self._members.values():
            if member.child is not None:
                member.child.kill()

    async def _describe_all(self, members: Sequence[Member]) -> None:
        async with self._aside("reading headers"):
            await self._describe(members)

    async def _describe(self, members: Sequence[Member]) -> None:
        asked = [self._options(member.entry) for member in members]
        child = await Child.start("helper", {"describe": asked})
        try:
            async for said in child.told():
                if "described" in said:
                    number, told = said["described"]
                    members[number].card, members[number].wrong = Card.of(told), None
                elif "undescribed" in said:
                    members[said["undescribed"][0]].wrong = said["undescribed"][1]
        except ProcessFailed as error:
            for member in members:
                member.wrong = member.wrong or str(error)
        finally:
            await child.end()
        for member in members:
            if member.card is None and member.wrong is None:
                member.wrong = f"its header could not be read: {how_it_ended(await child.wait())}"

    def _options(self, entry: Entry) -> dict[str, Any]:
        said = {
            name: getattr(entry, name)
            for name in ("context", "parallel", "threads", "kv_type", "draft")
            if getattr(entry, name) is not None
        }
        return {**self._defaults, **said, "model": entry.model}

    async def _load(self, member: Member) -> None:
        member.progress = ("reading its header", 0, None)
        card = await self.card(member)
        member.progress = ("waiting for memory", 0, None)
        async with self._changing:
            if member.child is not None and not member.child.ended:
                return
            for _ in range(_TRIES):
                share = await self._room_for(member, card)
                try:
                    await self._start(member, card, share)
                    # Or else the next change would have it leave before anybody is served.
                    member.owed |= member.waiting
                    return
                except ProcessFailed as error:
                    await self._end(member)
                    if error.smallest is None or error.smallest <= share:
                        raise ApiError(
                            400 if error.usage else 500,
                            f"{member.entry.name} could not be loaded: {error}",
                        ) from None
                    member.least = max(error.smallest, member.least)
            raise ApiError(503, f"{member.entry.name} found no room; try again later")

    async def _room_for(self, member: Member, card: Card) -> int:
        wanted = Wish(member.entry.name, member.ways())
        shares = await self._arrange([wanted], self._room())
        if shares is None:
            most = self._room()
            least = max(card.ways[0].nbytes, member.least)
            raise ApiError(
                400,
                f"{member.entry.name} needs {format_size(least)} at least, and of the budget of "
                f"{format_size(self.ledger.budget or 0)} there are {format_size(most)} for models; "
                "give more memory, or a shorter context",
                code="budget_too_small",
            )
        return shares[member.entry.name]

    def _room(self) -> int:
        """Bytes for models."""
        owned = self.ledger.owned
        return (self.ledger.budget or 0) - owned["front"] - owned.get("helper", 0)

    @asynccontextmanager
    async def _aside(self, what: str) -> AsyncIterator[None]:
        """Room for a helper."""
        wish = Wish("\0helper", [Way(HELPER_BYTES, 0.0)])
        async with self._changing:
            if await self._arrange([wish], self._room()) is None:
                raise ApiError(
                    503,
                    f"{what} takes {format_size(HELPER_BYTES)}, and the budget has "
                    f"{format_size(self._room())} beside the server itself",
                )
            self.ledger.take("helper", HELPER_BYTES)
        try:
            yield
        finally:
            self.ledger.give("helper", HELPER_BYTES)

    async def _arrange(self, wanted: Sequence[Wish], room: int) -> dict[str, int] | None:
        """Make room for what is ``wanted``, of those that are there: shares for all of them, or
        None where there is no way. Waits for answers of those that have to go."""
        for _ in range(_TRIES):
            names = {wish.name for wish in wanted}
            there = [m for m in self._members.values() if m.share and m.entry.name not in names]
            # As they are, if that will do: nothing is read again for a little less.
            wishes = [*wanted, *(self._wish(member) for member in there)]
            shares = allot(wishes, room)
            if shares is None:
                return None
            going = [m for m in there if not shares[m.entry.name]]
            for member in going:
                member.leaving = True
            try:
                for member in going:
                    await self._idle(member)
                    await self._end(member)
            finally:
                for member in going:
                    member.leaving = False
            less = [m for m in there if 0 < shares[m.entry.name] < m.share]
            if all([await self._resize(m, shares[m.entry.name]) for m in less]):
                return dict(shares)
        return None

    def _wish(self, member: Member) -> Wish:
        dearer = _BUSY_WEIGHT if member.leases else 1.0
        ways = [way for way in member.ways() if way.nbytes <= member.share]
        return Wish(member.entry.name, ways, member.weight(), member.away_s() * dearer)

    async def _grow(self) -> None:
        """Give what is free to those whose answers it speeds up most."""
        members = [m for m in self._members.values() if m.loaded]
        wishes = [
            Wish(m.entry.name, [w for w in m.ways() if w.nbytes >= m.share], m.weight())
            for m in members
        ]
        shares = allot(wishes, self._room())
        for member in members if shares is not None else ():
            assert shares is not None
            if shares[member.entry.name] > member.share:
                await self._resize(member, shares[member.entry.name])

    async def _resize(self, member: Member, share: int) -> bool:
        """Have a model run within another share; False if it cannot."""
        name = _owner(member)
        assert member.address is not None
        if share > member.share:
            self.ledger.take(name, share - member.share)
        try:
            status, body = await asked_json(member.address, "POST", "/memory", {"memory": share})
        except (WorkerGone, ValueError):
            status, body = 0, None
        if status == 200:
            if share < member.share:
                self.ledger.give(name, member.share - share)
            member.share = share
            return True
        if share > member.share:
            self.ledger.give(name, share - member.share)
            return False
        # It holds more than its Plan thought: that much less than it has does not do.
        member.least = max(member.least, share + 1)
        message = (body or {}).get("error", {}).get("message", how_it_ended(0) if body else "")
        _log.info("%s cannot run in %s: %s", member.entry.name, format_size(share), message)
        return False

    async def _start(self, member: Member, card: Card, share: int) -> None:
        """Load a model into a share that is free."""
        entry = member.entry
        self.ledger.take(_owner(member), share)
        member.share = share
        key = secrets.token_hex(16)
        asked = {
            **self._options(entry),
            "path": str(card.path),
            "names": list(entry.names),
            "memory": share,
            "key": key,
            "system": entry.system,
            "template": entry.template,
            "sampling": dict(entry.sampling),
            "settings": self._worker_settings,
        }
        member.child = child = await Child.start("worker", asked)
        async for said in child.told():
            if "progress" in said:
                label, done, total = said["progress"]
                member.progress = (label, done, total)
            elif "ready" in said:
                member.address = Address(said["ready"]["port"], key)
                member.context = said["ready"]["context"]
                member.expires = monotonic() + self.keep_alive_s
                watch = asyncio.create_task(self._watch(member, child))
                self._watching.add(watch)
                watch.add_done_callback(self._watching.discard)
                return
        why = how_it_ended(await child.wait())
        raise ProcessFailed({"message": f"its process ended while it was loading: {why}"})

    async def _watch(self, member: Member, child: Child) -> None:
        """Notice the end of a process that nobody asked to end."""
        status = await child.wait()
        if member.child is child and not self.closing:
            _log.warning("the process of %s ended: %s", member.entry.name, how_it_ended(status))
            self._forget(member)
            self._tell_change()

    async def _end(self, member: Member) -> None:
        """End a model's process, and have its share back."""
        child, member.child, member.address = member.child, None, None
        if child is not None:
            await child.end(self._grace_s)
        self._forget(member)

    def _forget(self, member: Member) -> None:
        member.child = member.address = None
        share, member.share = member.share, 0
        if share:
            self.ledger.give(_owner(member), share)

    async def _idle(self, member: Member) -> None:
        """Until nobody has an answer of it under way, or is owed one. Who came later waits."""
        while member.child is not None and (member.answering or member.owed):
            self._changed.clear()
            await self._changed.wait()

    def _tell_change(self) -> None:
        """To those who wait for something to be idle."""
        self._changed.set()

    async def _tick(self) -> None:
        """Unload what was not asked for long enough."""
        while not self.closing:
            await asyncio.sleep(_TICK_S)
            for member in list(self._members.values()):
                late = member.keep_alive_s >= 0 and monotonic() >= member.expires
                if member.loaded and not member.leases and late and not self._changing.locked():
                    async with self._changing:
                        # Somebody may have asked meanwhile.
                        if not member.leases:
                            await self._end(member)
                        await self._grow()


def _owner(member: Member) -> str:
    return f"model {member.entry.name}"


def _heard(task: asyncio.Task[None]) -> None:
    """Somebody may have gone away who waited for it: its error is nobody's then."""
    with suppress(asyncio.CancelledError, StrataError):
        task.exception()
