"""Processes of a fleet that are none: they take no memory and no time, and tell what was done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from strata.server.fleet.wire import ProcessFailed

MB = 10**6
CURVE = [[100 * MB, 4.0], [150 * MB, 2.0], [200 * MB, 1.0]]
"""Of every fake model: at least 100 MB, all of it in 200."""


class FakeChildren:
    """Stands for ``Child``. ``alive`` are shares by name; ``most`` the largest sum of them so far.
    A worker takes ``load_s`` to load; an answer ``answer_s``, in four pieces where it streams.
    ``stubborn`` ones refuse another share, ``frail`` ones end of it. Headers say ``path``."""

    def __init__(self) -> None:
        self.alive: dict[str, int] = {}
        self.most = 0
        self.loads: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.load_s = 0.0
        self.answer_s = 0.0
        self.broken: dict[str, str] = {}
        self.stubborn: set[str] = set()
        self.frail: set[str] = set()
        self.fetched: list[str] = []
        self.path = "/x.gguf"
        self.workers: dict[str, FakeChild] = {}

    async def start(self, kind: str, asked: dict[str, Any]) -> FakeChild:
        """See ``Child.start``."""
        return FakeChild(self, kind, asked)

    def count(self) -> None:
        self.most = max(self.most, sum(self.alive.values()))


class FakeChild:
    """See ``Child``."""

    def __init__(self, children: FakeChildren, kind: str, asked: dict[str, Any]) -> None:
        self._children, self._kind, self._asked = children, kind, asked
        self._over = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.pid = 1
        self.name = asked["names"][0] if kind == "worker" else ""
        self.path = asked.get("path")

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    async def told(self) -> AsyncIterator[dict[str, Any]]:
        if "fetch" in self._asked:
            self._children.fetched.append(self._asked["fetch"])
            for done in (1, 2):
                yield {"progress": ["model.gguf", done, 2]}
            yield {"fetched": "/somewhere/model.gguf", "before": "here" in self._asked["fetch"]}
            return
        if self._kind == "helper":
            for number, each in enumerate(self._asked["describe"]):
                if "broken" in each["model"]:
                    yield {"undescribed": [number, "it is no model", False]}
                    continue
                card = {"path": self._children.path, "curve": CURVE, "context": 64, "size": 10**8}
                card |= {"digest": "d", "modified": "2026-01-01T00:00:00Z", "details": {}}
                card |= {"model_info": {}, "embeds": False, "template": ""}
                yield {"described": [number, card]}
            return
        children = self._children
        children.loads.append(self.name)
        children.alive[self.name] = self._asked["memory"]
        children.workers[self.name] = self
        children.count()
        for done in range(4):
            yield {"progress": ["weights", done, 4]}
            await asyncio.sleep(children.load_s / 4)
        if why := children.broken.get(self.name):
            raise ProcessFailed({"message": why, "usage": False})
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        yield {"ready": {"port": port, "context": 64}}

    async def wait(self) -> int:
        await self._over.wait()
        return 0

    async def end(self, grace_s: float = 0.0) -> None:
        self.kill()

    def kill(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._kind == "worker":
            self._children.alive.pop(self.name, None)
        self._over.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (int(line.split(":")[1]) for line in head.split("\r\n") if "ength:" in line), 0
        )
        body = await reader.readexactly(length)
        method, path, _ = head.split(" ", 2)
        children = self._children
        if (method, path) == ("POST", "/memory"):
            wanted = json.loads(body)["memory"]
            if self.name in children.frail:
                self.kill()
                writer.close()
            elif self.name in children.stubborn:
                self._answer(writer, 400, {"error": {"message": "too small"}})
            else:
                children.alive[self.name] = wanted
                children.count()
                self._answer(writer, 200, {})
            return
        assert f"Bearer {self._asked['key']}" in head
        children.asked.append((self.name, path))
        said = _said(body)
        if said.get("stream"):
            head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for number in range(4):
                writer.write(_chunk(f'data: {{"{self.name}": {number}}}\n\n'))
                await writer.drain()
                await asyncio.sleep(children.answer_s / 4)
                if self.ended:
                    writer.transport.abort()
                    return
            writer.write(_chunk("data: [DONE]\n\n") + _chunk(""))
            writer.close()
            return
        await asyncio.sleep(children.answer_s)
        status = 400 if said.get("wrong") else 200
        told = {"error": {"message": "wrong"}} if status == 400 else {"by": self.name, "to": path}
        self._answer(writer, status, {**told, "method": method})

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        writer.close()


def _said(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {"wrong": 1} if body else {}
    return said if isinstance(said, dict) else {"wrong": 1}


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()
