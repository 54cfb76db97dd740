"""Connections: accepted while there is room, and let go of when others need it.

Room is made before a connection is accepted: whoever has waited longest without having sent a whole
request goes, so that a crowd that says nothing keeps nobody out. Those with a request stay. A few
places are kept for asking about the server's health.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from typing import Any, Protocol

from strata.server.seldom import Seldom

_log = logging.getLogger("strata.server")

SPARE = 16
"""Connections beyond the limit, which are told so, or asked for the server's health."""

HEADS_BYTES = 4 << 20
"""Of requests whose heads have not arrived whole, of all connections together."""

_OTHER_FILES = 64
"""Descriptors that are left to everything else."""

_BACKOFF_S = 0.1
"""After which it is tried again when the system has no descriptor or memory left."""

_BREATH_S = 0.001
"""Between two connections in a crowd: those who are served come first."""


class Connection(Protocol):
    """What the crowd knows of a connection: it can be let go of."""

    def let_go(self) -> None:
        """Close it at once."""


class Crowd:
    """The connections of one server, ``limit`` of which are served."""

    def __init__(self, limit: int) -> None:
        self.limit = _with_descriptors(limit)
        self._all: set[Connection] = set()
        # Those without a whole request, who waits longest first, with the bytes of its head.
        self._waiting: dict[Connection, int] = {}
        self._held = 0
        self._left = asyncio.Event()
        self._seldom = Seldom(_log)

    @property
    def full(self) -> bool:
        """Whether more have sent a request than are served."""
        return len(self._all) - len(self._waiting) > self.limit

    def __len__(self) -> int:
        return len(self._all)

    def came(self, connection: Connection) -> None:
        """It is there, and has sent no request."""
        self._all.add(connection)
        self._waiting[connection] = 0

    def waits(self, connection: Connection) -> None:
        """It has no request under way, as of now."""
        if connection in self._all:
            self._waiting.setdefault(connection, 0)

    def holds(self, connection: Connection, nbytes: int) -> None:
        """So many bytes are there of a head that is not whole. Where those of all are too many, who
        waits longest with some goes."""
        if connection in self._waiting:
            self._held += nbytes - self._waiting[connection]
            self._waiting[connection] = nbytes
        while self._held > HEADS_BYTES:
            self._let_go(next(each for each, held in self._waiting.items() if held))

    def asked(self, connection: Connection) -> None:
        """It has sent a whole request."""
        self._held -= self._waiting.pop(connection, 0)

    def left(self, connection: Connection) -> None:
        """It is closed."""
        self._all.discard(connection)
        self._held -= self._waiting.pop(connection, 0)
        self._left.set()

    async def accept(self, sock: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        while True:
            await self._make_room()
            try:
                accepted, _ = await loop.sock_accept(sock)
            except OSError as error:
                self._seldom.warning(f"no connection can be accepted: {error.strerror or error}")
                self._let_one_go()
                await asyncio.sleep(_BACKOFF_S)
                continue
            try:
                await loop.connect_accepted_socket(make, accepted)
            except OSError:
                accepted.close()

    async def _make_room(self) -> None:
        crowded = False
        while len(self._all) >= self.limit + SPARE:
            crowded = True
            self._left.clear()
            self._let_one_go()
            await self._left.wait()
        if crowded:
            await asyncio.sleep(_BREATH_S)

    def _let_one_go(self) -> None:
        if self._waiting:
            self._let_go(next(iter(self._waiting)))

    def _let_go(self, connection: Connection) -> None:
        self._held -= self._waiting.pop(connection)
        connection.let_go()


def _with_descriptors(limit: int) -> int:
    """``limit``, or as many as the system has descriptors for; its soft limit is raised."""
    wanted = limit + SPARE + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most: Any = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        limit = max(1, limit - (wanted - most))
    return limit
