"""Requests to the application that come over no wire: those of batches, and parts of others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

from starlette.types import ASGIApp, Message

from strata.server.replies import one_line


def compact_json(value: Any) -> bytes:
    """JSON in UTF-8; where it has half a character, which has none there, in ASCII."""
    try:
        return one_line(json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


async def posted(app: ASGIApp, path: str, body: bytes, key: str | None) -> tuple[int, bytes]:
    """Status and body of the answer to a request that comes over no wire."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *([] if key is None else [(b"authorization", f"Bearer {key}".encode())]),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    said, status, told = bytearray(), 500, False

    async def receive() -> Message:
        nonlocal told
        if told:
            # Nobody goes away.
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            said.extend(message.get("body", b""))

    call: Awaitable[None] = app(scope, receive, send)
    await call
    return status, bytes(said)
