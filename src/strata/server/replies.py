"""Answers on the wire: JSON at once, or a stream that ends when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from strata.errors import StrataError
from strata.server.bridge import AsyncRun

T = TypeVar("T")

EVENT_STREAM = "text/event-stream"
LINES = "application/x-ndjson"
CLIENT_GONE = 499


class ClientGone(StrataError):
    """Nobody waits for the answer any longer."""


_BREAKS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Ends of lines to Unicode, and so to clients that split events by ``str.splitlines``, as httpx's
``aiter_lines`` does. JSON has such characters in strings only, where an escape means the same."""


def to_json(value: Any) -> str:
    """One line of strict JSON."""
    return one_line(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def one_line(text: str) -> str:
    """JSON that ``str.splitlines`` leaves whole."""
    return text if text.isascii() else text.translate(_BREAKS)


class Reply(Response):
    """A JSON body. A lone surrogate that a client sent and gets back becomes a question mark."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content).encode("utf-8", "replace")


def sse(data: Any, event: str | None = None) -> str:
    """One server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {to_json(data)}\n\n"


def sse_progress(progress: tuple[int, int]) -> str:
    """A comment, which clients pass over: the connection lives, and the prompt has come so far."""
    return f": prompt {progress[0]}/{progress[1]}\n\n"


class StreamReply(Response):
    """Sends what ``parts`` yields. When it ends, or the client goes away, ``run`` is cancelled."""

    def __init__(
        self, parts: AsyncGenerator[str, None], media_type: str, run: AsyncRun | None = None
    ) -> None:
        # No proxy on the way may collect events before it passes them on.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(media_type=media_type, headers=headers)
        del self.headers["content-length"]
        self._parts = parts
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await first_of(self._send_all(send), client_end(receive))
        finally:
            # First of all, because the generator may never have begun, and closing it may wait.
            if self._run is not None:
                self._run.cancel()
            await self._parts.aclose()

    async def _send_all(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for part in self._parts:
            body = part.encode("utf-8", "replace")
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; ClientGone, and ``work`` is cancelled, if the client goes away."""
    task = asyncio.ensure_future(work)

    async def wait() -> None:
        await task

    if not await first_of(wait(), client_end(request.receive)):
        raise ClientGone("the client went away")
    return task.result()


async def unless_gone(request: Request, run: AsyncRun, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work``; ClientGone if the client goes away. ``run`` ends with it."""
    try:
        ended = await first_of(work, client_end(request.receive))
    finally:
        run.cancel()
    if not ended:
        raise ClientGone("the client went away")


async def first_of(work: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> bool:
    """Whether ``work`` ends before ``other``; raises what it raised. At last both have ended."""
    wanted, unwanted = asyncio.ensure_future(work), asyncio.ensure_future(other)
    try:
        await asyncio.wait((wanted, unwanted), return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            wanted.result()
        return wanted.done()
    finally:
        for task in (wanted, unwanted):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def client_end(receive: Receive) -> None:
    """Until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
