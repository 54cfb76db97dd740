"""Models that come and go within one budget; see the package."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

from strata.errors import StrataError
from strata.memory import Ledger
from strata.server.errors import ApiError, ShuttingDown
from strata.server.fleet.allotment import Way, Wish, allot
from strata.server.fleet.children import Child, how_it_ended
from strata.server.fleet.entries import Entries, Entry
from strata.server.fleet.members import KEEP_ALIVE_S, Card, Member
from strata.server.fleet.proxy import Address, WorkerGone, asked_json
from strata.server.fleet.wire import HELPER_BYTES, ProcessFailed
from strata.sizes import format_size

_log = logging.getLogger("strata.server")

_BUSY_WEIGHT = 4.0
"""How much dearer it is to unload a model that is answering: whoever asks next waits for its end,
too."""

_TRIES = 10
"""For a change that turns out to need more than its Plan thought."""

_TICK_S = 0.2


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
        self._describing = asyncio.Lock()
        self._cards: WeakValueDictionary[str, Card] = WeakValueDictionary()
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
                    if before is not None:
                        before.gone = True
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
                member.check_there()
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
        await self.describe([member])
        if member.card is None:
            raise ApiError(*(member.wrong or (500, f"{member.entry.name} cannot be served")))
        return member.card

    async def describe(self, members: Sequence[Member]) -> None:
        """Read the headers of those that are not known; ApiError without room for that."""
        if self._described is not None and not self._described.done():
            await asyncio.shield(self._described)
        if all(member.known for member in members):
            return
        async with self._describing:
            for member in members:
                member.card = member.card or self._cards.get(self._key(member.entry))
            unknown = [member for member in members if not member.known]
            if unknown:
                async with self._aside("reading headers"):
                    await self._describe(unknown)

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
        """An entry is no more, or another."""
        member.gone = True
        if self._members.get(member.entry.name) is member:
            del self._members[member.entry.name]

    async def set_budget(self, budget: int) -> None:
        """Another budget for all; ApiError if what is there cannot be brought within it."""
        async with self._changing:
            before = self.ledger.budget or 0
            room = self._room() + budget - before
            if room < 0 or (budget < before and await self._arrange([], room) is None):
                raise ApiError(400, f"{format_size(budget)} is too little for the server alone")
            self.ledger.budget = budget
            await self._grow()

    async def fetch(self, reference: str) -> AsyncIterator[dict[str, Any]]:
        """Download a model: progress, and at last ``fetched`` with its path. ApiError."""
        async with self._aside("downloading"):
            child = await Child.start("helper", {"fetch": reference})
            try:
                async for said in child.told():
                    if "fetched" in said:
                        # It may be a newer one.
                        self._cards.clear()
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
        """All in one process; that at which it ends is the one that is wrong."""
        while members:
            for member in members:
                member.wrong = None
            asked = [self._options(member.entry) for member in members]
            child = await Child.start("helper", {"describe": asked})
            why = ""
            try:
                async for said in child.told():
                    if "described" in said:
                        number, told = said["described"]
                        members[number].card = card = Card.of(told)
                        self._cards[self._key(members[number].entry)] = card
                    elif "undescribed" in said:
                        number, message, usage = said["undescribed"]
                        members[number].set_wrong(400 if usage else 500, message)
            except ProcessFailed as error:
                why = str(error)
            finally:
                await child.end()
            members = [member for member in members if not member.known]
            if members:
                ended = f"its header could not be read: {how_it_ended(await child.wait())}"
                members[0].set_wrong(500, why or ended)
                members = members[1:]

    def _key(self, entry: Entry) -> str:
        """All by which two cards may differ."""
        return json.dumps(self._options(entry), sort_keys=True)

    def _options(self, entry: Entry) -> dict[str, Any]:
        said = {
            name: getattr(entry, name)
            for name in ("context", "parallel", "threads", "kv_type", "draft")
            if getattr(entry, name) is not None
        }
        return {**self._defaults, **said, "model": entry.model}

    async def _load(self, member: Member) -> None:
        member.progress = ("reading its header", 0, None)
        if member.child is None:
            # A download may have brought another file since.
            member.card = self._cards.get(self._key(member.entry))
        card = await self.card(member)
        member.progress = ("waiting for memory", 0, None)
        async with self._changing:
            if member.child is not None and not member.child.ended:
                return
            for _ in range(_TRIES):
                member.check_there()
                share = await self._room_for(member, card)
                try:
                    await self._start(member, card, share)
                    if member.gone:
                        await self._end(member)
                        member.check_there()
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
        """Have a model run within another share; False if it cannot, or has ended meanwhile."""
        name, child, before = _owner(member), member.child, member.share
        if member.address is None:
            return False
        if share > before:
            self.ledger.take(name, share - before)
        try:
            status, body = await asked_json(member.address, "POST", "/memory", {"memory": share})
        except (WorkerGone, ValueError):
            status, body = 0, None
        there = member.child is child and member.share == before
        if status == 200 and there:
            if share < before:
                self.ledger.give(name, before - share)
            member.share = share
            return True
        if share > before:
            self.ledger.give(name, share - before)
            return False
        if there and status:
            # It holds more than its Plan thought: that much less than it has does not do.
            member.least = max(member.least, share + 1)
            message = (body or {}).get("error", {}).get("message", f"status {status}")
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
