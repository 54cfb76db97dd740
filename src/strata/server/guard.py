"""What every request passes before anything reads it: who calls, from where, and how much it sends.

A browser may be made to call a server on this machine by any page. Its Host header shows a name
that was bent to this address (DNS rebinding), its Origin header a foreign page; both are refused.
"""

from __future__ import annotations

import hmac
import logging
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strata.server.admission import SHARE, UNCOUNTED, Admission, Share
from strata.server.crowd import Crowd
from strata.server.errors import ApiError, as_api_error, error_body, error_headers
from strata.server.replies import CLIENT_GONE, Reply
from strata.server.seldom import Seldom
from strata.server.settings import Settings
from strata.server.telemetry.metrics import Metrics

_seldom = Seldom(logging.getLogger("strata.server"))

CROWD = "strata.crowd"
"""Where the server leaves its Crowd in the state of every request."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:@/\[\]]*))(?::\d*)?")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class TooLarge(ApiError):
    """A body beyond the limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit} bytes")


class Closing(ApiError):
    """An error after which the connection is closed."""


class Guard:
    """ASGI middleware; see the module. It also counts requests and catches what went wrong."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, admission: Admission
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._largest = min(settings.body_bytes, admission.largest_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._check(scope)
            with self._admission.request() as share:
                SHARE.set(share)
                await self._app(_as_json(scope), self._bounded(receive, share), watched)
        except Exception as error:
            if not isinstance(error, ApiError):
                _seldom.failure(f"{scope['method']} {scope['path']} failed", error)
            if status == CLIENT_GONE:
                await error_reply(scope["path"], error)(scope, receive, watched)
        finally:
            # Only known paths are labels: a client must not fill the memory with names.
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(endpoint, str(status)).inc()

    def _check(self, scope: Scope) -> None:
        crowd: Crowd | None = scope.get("state", {}).get(CROWD)
        if crowd is not None and crowd.full and scope["path"] != "/health":
            raise Closing(503, f"{crowd.limit} clients are served already; try again later")
        headers = Headers(scope=scope)
        host = headers.get("host")
        if self._settings.loopback and host is not None:
            name = _host_name(host)
            if name not in (*_LOCAL_NAMES, self._settings.host):
                raise ApiError(403, "this server answers to localhost only, by its Host header")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in _SAFE_METHODS:
            known = self._settings.cors_origins
            if "*" not in known and origin not in known and _authority(origin) != host:
                raise ApiError(403, "pages of this origin may not call (see --cors-origin)")
        if self._settings.api_key is not None and not _is_open(scope):
            self._check_key(headers)
        if "transfer-encoding" in headers and "content-length" in headers:
            # Whoever stands before this server may have gone by the other one (RFC 9112, 6.3).
            raise Closing(400, "a request has Content-Length or Transfer-Encoding, not both")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._largest:
            raise TooLarge(self._largest)

    def _bounded(self, receive: Receive, share: Share) -> Receive:
        """``receive`` that raises ApiError where the body is too long, or all are together."""
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            length = len(message.get("body", b""))
            before, size = size, size + length
            if size > self._largest:
                raise TooLarge(self._largest)
            if size > UNCOUNTED:
                share.arrived(length if before > UNCOUNTED else size)
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
    return path in ("/health", "/") or path.startswith("/web/")


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
    return "" if match is None else (match[1] or match[2]).lower()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
