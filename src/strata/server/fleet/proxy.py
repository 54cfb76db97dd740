"""A request passed on to a worker, and the answer passed back as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import h11
from starlette.types import Message, Scope, Send

from strata.records import dataclass

_READ_BYTES = 8 << 10
"""At a time, of each answer under way; as many wait at most where a client does not read."""

_MOST_ERROR_BYTES = 1 << 20
_HOP = (
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
    *(b"transfer-encoding", b"expect"),
)
"""Headers of one connection only (RFC 9110, 7.6.1)."""
_OURS = (b"host", b"content-length", b"authorization", b"x-api-key", b"origin", b"accept-encoding")
"""Of a request: told to the front. A worker has a key of its own."""


class WorkerGone(Exception):
    """The worker ended before its answer did."""


@dataclass(frozen=True)
class Address:
    """Where a worker listens, on this machine, and the key that it wants."""

    port: int
    key: str


@dataclass
class Reply:
    """The head of an answer, and its body as it comes."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]

    async def whole(self) -> bytes:
        """The body of a short answer."""
        data = b""
        async for part in self.body:
            data += part
            if len(data) > _MOST_ERROR_BYTES:
                break
        return data


@asynccontextmanager
async def asked(
    address: Address,
    method: str,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> AsyncIterator[Reply]:
    """The answer of a worker; leaving ends the request, if it has not ended. WorkerGone."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", address.port, limit=_READ_BYTES)
    except OSError as error:
        raise WorkerGone(str(error)) from None
    try:
        conn = h11.Connection(h11.CLIENT)
        kept = [(k, v) for k, v in headers if k.lower() not in (*_HOP, *_OURS)]
        kept += [
            (b"host", b"127.0.0.1"),
            (b"authorization", b"Bearer " + address.key.encode()),
            (b"connection", b"close"),
            (b"content-length", b"%d" % len(body)),
        ]
        writer.write(conn.send(h11.Request(method=method, target=target, headers=kept)) or b"")
        if body:
            writer.write(conn.send(h11.Data(data=body)) or b"")
        writer.write(conn.send(h11.EndOfMessage()) or b"")
        event = await _next(conn, reader)
        while not isinstance(event, h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise WorkerGone("it gave no answer")
            event = await _next(conn, reader)
        head = [(k, v) for k, v in event.headers if k not in _HOP]
        yield Reply(event.status_code, head, _body(conn, reader))
    finally:
        writer.close()


async def _next(conn: h11.Connection, reader: asyncio.StreamReader) -> Any:
    try:
        while True:
            event = conn.next_event()
            if event is not h11.NEED_DATA:
                return event
            conn.receive_data(await reader.read(_READ_BYTES))
    except (OSError, h11.ProtocolError) as error:
        raise WorkerGone(str(error)) from None


async def _body(conn: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        event = await _next(conn, reader)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        else:
            raise WorkerGone("its answer was cut")


async def asked_json(
    address: Address, method: str, path: str, body: object = None
) -> tuple[int, Any]:
    """Status and body of a short call of the front's own."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = [(b"content-type", b"application/json")]
    async with asked(address, method, path.encode(), headers, data) as reply:
        return reply.status, json.loads(await reply.whole() or b"null")


async def pass_back(reply: Reply, send: Send) -> None:
    """The whole answer, as it comes."""
    names = (b"x-request-id", b"request-id", b"x-content-type-options", b"date", b"server")
    # The front says these itself.
    head = [(k, v) for k, v in reply.headers if k not in names]
    await send({"type": "http.response.start", "status": reply.status, "headers": head})
    async for part in reply.body:
        await send(_part(part))
    await send(_part(b"", more=False))


def _part(data: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def send_part(send: Send, data: bytes, *, more: bool = True) -> None:
    """A piece of a body."""
    await send(_part(data, more=more))


def target_of(scope: Scope) -> bytes:
    """Path and query as they were sent."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    path = path.split(b"?", 1)[0]
    query: bytes = scope.get("query_string", b"")
    return path + (b"?" + query if query else b"")
