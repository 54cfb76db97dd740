"""Connections that are closed while their client still sends: it is to read why.

Where bytes lie unread in a socket that is closed the system tells the other side of a reset, and
what was answered before is lost. So the end is said first, and what comes is dropped for a while
(RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

SECONDS = 5.0
BYTES = 32 << 20
"""Of a client that goes on, at most."""


class Parting:
    """A transport whose ``close`` lets a client that is ``still_sending`` read its answer."""

    def __init__(self, transport: asyncio.Transport, still_sending: Callable[[], bool]) -> None:
        self._transport = transport
        self._still_sending = still_sending
        self._left = BYTES
        self._end: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def begun(self) -> bool:
        """Whether it is to be closed, and what comes is to be dropped."""
        return self._end is not None

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self.begun or self._transport.is_closing()

    def close(self) -> None:
        """Close it, at once where the client has sent all."""
        if self.begun:
            return
        if self._transport.is_closing() or not self._still_sending():
            self._transport.close()
            return
        self._end = asyncio.get_running_loop().call_later(SECONDS, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def drop(self, nbytes: int) -> None:
        """So many bytes came in the meantime."""
        self._left -= nbytes
        if self._left < 0:
            self._transport.abort()

    def lost(self) -> None:
        """It is closed."""
        if self._end is not None:
            self._end.cancel()
