"""The process that has the port: who calls, which model is asked for, the way there and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Annotated, Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from strata import __version__
from strata.errors import UsageError
from strata.memory import Ledger, process_memory
from strata.memory.limits import memory_total
from strata.server.admission import Admission
from strata.server.durations import seconds_of
from strata.server.errors import ApiError, as_api_error, error_body, protocol_of
from strata.server.fleet import names
from strata.server.fleet.bodies import REQUESTS_BYTES, admitted, parsed, read
from strata.server.fleet.fleet import Fleet
from strata.server.fleet.members import Member
from strata.server.fleet.proxy import (
    Reply,
    WorkerGone,
    asked,
    pass_back,
    send_part,
    target_of,
)
from strata.server.guard import Guard, error_reply
from strata.server.origins import Origins
from strata.server.page import Page
from strata.server.plain import METRICS_TYPE
from strata.server.replies import EVENT_STREAM, LINES, client_end, first_of, sse, to_json
from strata.server.replies import Reply as JsonReply
from strata.server.settings import Settings
from strata.sizes import parse_size

_RETRIES = 3
"""Times that a request is passed on anew because a model left just then."""

_WAIT_FOR_ANY_S = 1.0

_MOST_SMALL = 4096
"""Bytes of a request that may be one which only loads or unloads."""

_BUILD = f"strata-{__version__}"
_METHODS = ("GET", "HEAD", "POST", "DELETE")


_LATER_BYTES = 16 << 20
"""Which the front comes to take beside requests: connections, what it remembers, libraries."""


def own_bytes() -> int:
    """What the front takes of a budget."""
    return process_memory().total + REQUESTS_BYTES + _LATER_BYTES


class Asked(BaseModel):
    """What the front has to know of a request; all else is passed over, and is the worker's to
    check."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    keep_alive: Annotated[float, BeforeValidator(seconds_of)] | None = None

    @classmethod
    async def of(cls, body: bytes) -> Asked:
        """Of any body."""
        try:
            return await parsed(body, cls)
        except ValidationError:
            return cls()


class Budget(BaseModel):
    """Another budget: bytes, or text such as ``4GB``."""

    memory: Annotated[int, Field(gt=0, le=1 << 60)] | str


class FrontMetrics:
    """Figures of the front; those of each model are at ``/metrics?model=NAME``."""

    def __init__(self, fleet: Fleet) -> None:
        self._registry = CollectorRegistry()
        self._fleet = fleet
        self.requests = Counter(
            "strata_requests",
            "HTTP requests by endpoint and status",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._registry.register(self)

    def collect(self) -> list[GaugeMetricFamily]:
        """See prometheus_client's Collector."""
        ledger = self._fleet.ledger
        owned = GaugeMetricFamily("strata_share_bytes", "Bytes by owner", labels=("owner",))
        for owner, size in ledger.owned.items():
            owned.add_metric((owner,), size)
        budget = GaugeMetricFamily("strata_memory_budget_bytes", "Memory allowed", ledger.budget)
        there = GaugeMetricFamily("strata_models_loaded", "Models loaded", len(self._fleet.loaded))
        return [owned, budget, there]

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)


class Front:
    """See the module; what a ``Server`` serves."""

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        self.fleet, self.settings = fleet, settings
        self.metrics = FrontMetrics(fleet)
        # Its own share is entered as a whole.
        self.admission = Admission(Ledger(), REQUESTS_BYTES)
        self._closing: asyncio.Task[None] | None = None

    def app(self) -> ASGIApp:
        """The application; its lifespan starts the fleet."""
        page = Page()
        pages = [Route("/", page.index), Mount("/web", page, name="web")]
        routes = [
            *names.routes(self.fleet),
            Route("/health", self._health),
            Route("/v1/health", self._health),
            Route("/metrics", self._metrics),
            Route("/memory", self._memory, methods=["GET", "POST"]),
            Route("/live", _Endpoint(self._live)),
            Route("/props", _Endpoint(self._props)),
            Route("/v1/responses/{id}", _Endpoint(self._stored), methods=["GET", "DELETE"]),
            Route("/v1/responses/{id}/input_items", _Endpoint(self._stored)),
            *(() if "page" in self.settings.without else pages),
            Route("/{path:path}", _Endpoint(self._pass_on), methods=list(_METHODS)),
        ]
        middleware = []
        settings = self.settings
        if settings.cors_origins or settings.loopback:
            middleware.append(Middleware(Origins, settings=settings))
        middleware.append(
            Middleware(
                Guard,
                settings=settings,
                metrics=self.metrics,
                admission=self.admission,
            )
        )

        async def on_error(request: Request, error: Exception) -> Response:
            return error_reply(request.url.path, error)

        return Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={ApiError: on_error, UsageError: on_error},
        )

    def begin_closing(self) -> None:
        """See Served."""
        self._closing = asyncio.create_task(self.fleet.close())

    def cut_off(self) -> None:
        """See Served."""
        self.fleet.cut_off()

    def close(self) -> bool:
        """See Served."""
        self.fleet.cut_off()
        return True

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.fleet.start()
        yield
        if self._closing is not None:
            await self._closing

    async def _health(self, request: Request) -> Response:
        if self.fleet.closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        return JsonReply({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        self.settings.check_served("metrics")
        name = request.query_params.get("model")
        if name is None:
            return Response(self.metrics.text(), media_type=METRICS_TYPE)
        member = self.fleet.find(name)
        if not member.loaded or member.address is None:
            raise ApiError(404, f"{member.entry.name} is not loaded")
        try:
            async with asked(member.address, "GET", b"/metrics") as reply:
                return Response(await reply.whole(), media_type=METRICS_TYPE)
        except WorkerGone:
            raise _gone(member) from None

    async def _memory(self, request: Request) -> Response:
        if request.method == "POST":
            wanted = (await read(request, Budget)).memory
            size = parse_size(wanted) if isinstance(wanted, str) else wanted
            await self.fleet.set_budget(min(size, memory_total() or size))
        ledger = self.fleet.ledger
        return JsonReply(
            {
                "budget": ledger.budget,
                "resident": process_memory().total,
                "owned": {owner: n for owner, n in ledger.owned.items() if n},
                "models": {m.entry.name: m.share for m in self.fleet.loaded},
            }
        )

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The picture of the model that is named, or else of the one that was asked last, while it
        is there; before that a comment now and then."""
        request = Request(scope)
        name = request.query_params.get("model")
        member = self.fleet.find(name) if name else next(iter(self.fleet.loaded), None)
        if member is not None and member.loaded and member.address is not None:
            try:
                async with asked(member.address, "GET", b"/live") as reply:
                    await first_of(pass_back(reply, send), client_end(receive))
            except WorkerGone:
                pass
            return
        await _begin_stream(send, EVENT_STREAM)

        def there() -> bool:
            return bool(self.fleet.loaded) if member is None else member.loaded

        async def wait() -> None:
            while not there() and not self.fleet.closing:
                await send_part(send, b": the model is not loaded\n\n")
                await asyncio.sleep(_WAIT_FOR_ANY_S)
            await send_part(send, b"", more=False)

        await first_of(wait(), client_end(receive))

    async def _props(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What runs, as llama-server says it: asking loads nothing and keeps nothing."""
        member = self.fleet.find(Request(scope).query_params.get("model"))
        if member.loaded and member.address is not None:
            try:
                async with asked(member.address, "GET", b"/props") as reply:
                    await pass_back(reply, send)
                return
            except WorkerGone:
                pass
        told = {"model_alias": member.entry.name, "is_sleeping": True, "build_info": _BUILD}
        await JsonReply(told)(scope, receive, send)

    async def _stored(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A response is with the model that gave it, as long as that is there."""
        ask = partial(asked, method=scope["method"], target=target_of(scope))
        for member in self.fleet.loaded:
            # It may have gone while another was asked.
            if member.address is None:
                continue
            sender = _Sender(send)
            try:
                async with ask(member.address, headers=scope["headers"]) as reply:
                    if reply.status != 404:
                        await pass_back(reply, sender)
                        return
            except WorkerGone:
                if sender.begun:
                    raise
        raise ApiError(404, "there is no such response: a model that is unloaded forgets its own")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await admitted(request) if scope["method"] == "POST" else b""
        wanted = await Asked.of(body) if body else Asked()
        name = wanted.model or wanted.name or request.query_params.get("model")
        member = self.fleet.find(name)
        keep = wanted.keep_alive if scope["path"].startswith("/api/") else None
        if keep == 0 and len(body) < _MOST_SMALL and _asks_nothing(body):
            await self._unloaded(member, scope, receive, send)
            return
        stream = _streams(scope["path"], wanted.stream) if scope["method"] == "POST" else None
        work = self._answered(member, keep, stream, scope, body, send)
        await first_of(work, client_end(receive))

    async def _answered(
        self,
        member: Member,
        keep_alive_s: float | None,
        stream: str | None,
        scope: Scope,
        body: bytes,
        send: Send,
    ) -> None:
        begun = False
        try:
            async with self.fleet.lease(member, keep_alive_s):
                for _ in range(_RETRIES):
                    ready = asyncio.ensure_future(self.fleet.ready(member))
                    try:
                        while not ready.done():
                            await asyncio.wait([ready], timeout=self.settings.keepalive_s)
                            if not ready.done() and stream is not None:
                                if not begun:
                                    await _begin_stream(send, stream)
                                begun = True
                                await send_part(send, _ping(scope["path"], member))
                        async with asked(
                            ready.result(),
                            scope["method"],
                            target_of(scope),
                            scope["headers"],
                            body,
                        ) as reply:
                            begun = await self._back(reply, scope["path"], send, begun)
                            return
                    except WorkerGone:
                        # It ended between being ready and being asked: once more.
                        if member.loaded:
                            raise
                    finally:
                        ready.cancel()
                        if ready.done() and not ready.cancelled() and ready.exception() is None:
                            self.fleet.answered(member)
                raise ApiError(503, f"{member.entry.name} is not there; try again")
        except Exception as error:
            if not begun:
                if isinstance(error, WorkerGone):
                    raise _gone(member) from error
                raise
            shown = _gone(member) if isinstance(error, WorkerGone) else as_api_error(error)
            await send_part(send, _failed(scope["path"], shown), more=False)

    async def _back(self, reply: Reply, path: str, send: Send, begun: bool) -> bool:
        """Pass an answer back."""
        if not begun:
            sender = _Sender(send)
            try:
                await pass_back(reply, sender)
            except WorkerGone:
                if not sender.begun:
                    raise
                # What came is with the client: all that can be said is that it broke off.
                stream = sender.content_type
                tail = _failed(path, ApiError(500, "the model's process ended")) if stream else b""
                await send_part(send, tail, more=False)
            return True
        if reply.status != 200:
            error = await reply.whole()
            await send_part(send, _failed_body(path, error), more=False)
            return True
        async for part in reply.body:
            await send_part(send, part)
        await send_part(send, b"", more=False)
        return True

    async def _unloaded(self, member: Member, scope: Scope, receive: Receive, send: Send) -> None:
        await self.fleet.unload(member)
        told: dict[str, Any] = {
            "model": member.entry.name,
            "created_at": _now(),
            "done": True,
            "done_reason": "unload",
        }
        chat = {"message": {"role": "assistant", "content": ""}}
        told |= chat if scope["path"] == "/api/chat" else {"response": ""}
        await JsonReply(told)(scope, receive, send)


class _Endpoint:
    """An endpoint that is given the connection as it is."""

    def __init__(self, work: Any) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._work(scope, receive, send)


class _Sender:
    """Notices whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.content_type = ""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            kind = dict(message["headers"]).get(b"content-type", b"").decode("latin-1")
            self.content_type = kind if kind.startswith((EVENT_STREAM, LINES)) else ""
        await self._send(message)


async def _begin_stream(send: Send, kind: str) -> None:
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode() if kind == EVENT_STREAM else b""),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    if kind == LINES:
        headers[0] = (b"content-type", LINES.encode())
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _streams(path: str, said: bool | None) -> str | None:
    """The type of the stream that is asked for, None for an answer at once."""
    if path in ("/api/chat", "/api/generate"):
        return None if said is False else LINES
    return EVENT_STREAM if said else None


def _ping(path: str, member: Member) -> bytes:
    """That the connection lives, and how far loading is."""
    label, done, total = member.progress
    share = f" {done / total:.0%}" if total else ""
    told = f"loading {member.entry.name}: {label}{share}".replace("\n", " ")
    protocol = protocol_of(path)
    if protocol == "ollama":
        heading = {"model": member.entry.name, "created_at": _now(), "done": False}
        chat = {"message": {"role": "assistant", "content": ""}}
        return (
            to_json({**heading, **(chat if path == "/api/chat" else {"response": ""})}) + "\n"
        ).encode()
    return f": {told}\n\n".encode()


def _failed(path: str, error: ApiError) -> bytes:
    """The last piece of a stream that broke off."""
    body = error_body(path, error)
    if protocol_of(path) == "ollama":
        return (to_json(body) + "\n").encode()
    return sse(body, "error" if protocol_of(path) == "anthropic" else None).encode()


def _failed_body(path: str, body: bytes) -> bytes:
    """An error's body as the last piece of a stream that has begun."""
    line = b" ".join(body.split(b"\n"))
    if protocol_of(path) == "ollama":
        return line + b"\n"
    event = b"event: error\n" if protocol_of(path) == "anthropic" else b""
    return event + b"data: " + line + b"\n\n"


def _asks_nothing(body: bytes) -> bool:
    """Whether an answer is not even asked for, only that a model goes."""
    try:
        said = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and not any(said.get(k) for k in ("prompt", "messages", "input"))


def _gone(member: Member) -> ApiError:
    return ApiError(500, f"the process of {member.entry.name} ended; the server's log says why")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
