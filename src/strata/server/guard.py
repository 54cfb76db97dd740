"""What every request passes before anything reads it: who calls, from where, and how much it sends.

A browser may be made to call a server on this machine by any page. Its Host header shows a name
that was bent to this address (DNS rebinding), its Origin header a foreign page; both are refused.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from socket import gethostname
from time import perf_counter
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strata.server.admission import SHARE, UNCOUNTED, Admission, Share
from strata.server.crowd import Crowd
from strata.server.errors import ApiError, as_api_error, error_body, error_headers
from strata.server.notes import HEADER, NOTES, header_of
from strata.server.replies import CLIENT_GONE, Reply
from strata.server.seldom import Seldom
from strata.server.settings import Settings

_seldom = Seldom(logging.getLogger("strata.server"))
_requests = logging.getLogger("strata.server.requests")

UPLOADS = "/v1/files"
"""Where files are sent to."""

CROWD = "strata.crowd"
"""Where the server leaves its Crowd in the state of every request."""

HEAD_BYTES = 16 << 10
"""Of a request's head, and of what may be sent before an answer has come."""

_SMALL_HEAD = 4 << 10
_HEAD_COPIES = 4
"""Of a head, as it came and as it is parsed, while its request is served: those of small ones are
the server's own."""

_ERROR_S = 0.01
"""Between two errors of clients while others wait for tokens: reading such a request and telling
its error is up to two milliseconds of work for the thread that delivers tokens."""

_MOST_S = 1.0
"""For which such an error waits at most."""

_LOGGED = 256
"""Characters of a path that the log of requests has."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ID = re.compile(rb"[\w.-]{1,128}")
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:@/\[\]]*))(?::\d*)?")
_LOCAL_ENDS = (".localhost", ".local", ".internal")
"""Names that no public server of names gives away, as ``host.docker.internal``."""


class Counting(Protocol):
    """Who counts requests."""

    requests: Counter


class TooLarge(ApiError):
    """A body beyond the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit} bytes")


class Closing(ApiError):
    """An error after which the connection is closed."""


class Guard:
    """ASGI middleware; see the module. It also counts requests and catches what went wrong. While
    it is ``busy``, somebody waits for tokens, errors of clients are told one after the other, those
    of all of them: who goes on making them takes little of a core from those who wait."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Counting,
        admission: Admission,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._busy = busy
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._next_error = 0.0

    @property
    def _largest(self) -> int:
        """Bytes of a body; another budget may bring another bound."""
        return min(self._settings.body_bytes, self._admission.largest_body)

    def _most(self, scope: Scope) -> int:
        """Bytes of the body of this request: files go to the disk as they come."""
        upload = is_upload(self._settings, scope)
        return self._settings.files_bytes if upload else self._largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE
        request_id, began = _request_id(scope), perf_counter()
        notes: list[str] = []
        NOTES.set(notes)
        later: list[Message] = []

        async def watched(message: Message) -> None:
            nonlocal status
            waits = bool(later)
            if message["type"] == "http.response.start":
                status = message["status"]
                waits = 400 <= status < 500 and self._busy()
                headers = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                headers.append((b"x-request-id", request_id))
                if scope["path"].startswith("/v1/messages"):
                    headers.append((b"request-id", request_id))
                if notes:
                    headers.append((HEADER.encode(), header_of(notes)))
                message["headers"] = headers
            if waits:
                later.append(message)
            else:
                await send(message)

        try:
            self._check(scope)
            with self._admission.request() as share:
                SHARE.set(share)
                if (head := _head_bytes(scope)) > _SMALL_HEAD:
                    share.add(_HEAD_COPIES * head)
                await self._app(
                    scope if is_upload(self._settings, scope) else _as_json(scope),
                    self._bounded(receive, share, scope),
                    watched,
                )
        except Exception as error:
            if not isinstance(error, ApiError):
                _seldom.failure(f"{scope['method']} {scope['path']} failed", error)
            if status == CLIENT_GONE:
                await error_reply(scope["path"], error)(scope, receive, watched)
        finally:
            # Only known paths are labels: a client must not fill the memory with names.
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(endpoint, str(status)).inc()
            if _requests.isEnabledFor(logging.INFO):
                asked, took = f"{scope['method']} {scope['path'][:_LOGGED]}", perf_counter() - began
                _requests.info("%s %d in %.3f s (%s)", asked, status, took, request_id.decode())
        if later:
            # What the request held has been given back: it is not what others wait for.
            now = perf_counter()
            turn = min(max(self._next_error, now), now + _MOST_S)
            self._next_error = turn + _ERROR_S
            await asyncio.sleep(turn - now)
            for message in later:
                await send(message)

    def _check(self, scope: Scope) -> None:
        crowd: Crowd | None = scope.get("state", {}).get(CROWD)
        if crowd is not None and crowd.full and scope["path"] != "/health":
            raise Closing(503, f"{crowd.limit} clients are served already; try again later")
        if _head_bytes(scope) > HEAD_BYTES:
            # What comes at once is read whole.
            raise Closing(431, f"the head of this request is larger than {HEAD_BYTES} bytes")
        headers = Headers(scope=scope)
        host = headers.get("host")
        if self._settings.loopback and host is not None:
            name = _host_name(host)
            if name not in self._settings.hosts and not _is_here(name):
                raise ApiError(
                    403,
                    f"this server answers to names of this machine, not to {name[:64]!r} in the "
                    "Host header; other machines reach it with --host",
                )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in _SAFE_METHODS:
            allowed = "*" in self._settings.cors_origins
            allowed = allowed or self._settings.origins.fullmatch(origin) is not None
            if not allowed and _authority(origin) != host:
                raise ApiError(403, "pages of this origin may not call (see --cors-origin)")
        if self._settings.api_key is not None and not _is_open(scope):
            self._check_key(headers)
        if "transfer-encoding" in headers and "content-length" in headers:
            # Whoever stands before this server may have gone by the other one (RFC 9112, 6.3).
            raise Closing(400, "a request has Content-Length or Transfer-Encoding, not both")
        length = headers.get("content-length", "0")
        most = self._most(scope)
        if length.isascii() and length.isdigit() and int(length) > most:
            raise TooLarge(most)

    def _bounded(self, receive: Receive, share: Share, scope: Scope) -> Receive:
        """``receive`` that raises ApiError where the body is too long, or all are together."""
        size, most, upload = 0, self._most(scope), is_upload(self._settings, scope)

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            length = len(message.get("body", b""))
            before, size = size, size + length
            if size > most:
                raise TooLarge(most)
            if size > UNCOUNTED:
                if not upload:
                    share.arrived(length if before > UNCOUNTED else size)
                await self._admission.take_time(length)
            return message

        return bounded

    def _check_key(self, headers: Headers) -> None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        expected = (self._settings.api_key or "").encode()
        # Headers are latin-1 on the wire: this gives back the bytes that were sent.
        if not hmac.compare_digest(given.encode("latin-1", "replace"), expected):
            raise ApiError(
                401, "the API key is missing or wrong (Authorization: Bearer KEY, or x-api-key)"
            )


def _head_bytes(scope: Scope) -> int:
    return sum(len(name) + len(value) for name, value in scope["headers"])


def is_upload(settings: Settings, scope: Mapping[str, object]) -> bool:
    """Whether a file is sent, which is no JSON and is not held in memory."""
    return settings.files is not None and scope["method"] == "POST" and scope["path"] == UPLOADS


def _request_id(scope: Scope) -> bytes:
    """That of the caller, if it is one, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given if _ID.fullmatch(given) else f"req_{uuid4().hex}".encode()


def error_reply(path: str, error: Exception) -> Reply:
    """The response for an error under ``path``."""
    api = as_api_error(error)
    headers = error_headers(api)
    if isinstance(api, Closing):
        headers["connection"] = "close"
    return Reply(error_body(path, api), api.status, headers)


def _is_open(scope: Scope) -> bool:
    """Whether no key is asked for: health, the page and its files."""
    path: str = scope["path"]
    return path in ("/health", "/v1/health", "/") or path.startswith("/web/")


def _as_json(scope: Scope) -> Scope:
    # Many clients, curl among them, send JSON as something else; the Origin check above is what
    # keeps foreign pages out.
    if scope["method"] in _SAFE_METHODS:
        return scope
    headers = [(k, v) for k, v in scope["headers"] if k != b"content-type"]
    scope["headers"] = [*headers, (b"content-type", b"application/json")]
    return scope


def _host_name(host: str) -> str:
    match = _HOST.fullmatch(host)
    # What is no name is none of this machine.
    return "?" if match is None else (match[1] or match[2]).lower()


def _is_here(name: str) -> bool:
    """Whether a name in a Host header is none that a foreign page could have been loaded from: this
    machine's own, a private one, or an address, which has no name to be bent."""
    if name in ("", "localhost", gethostname().lower()) or name.endswith(_LOCAL_ENDS):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
