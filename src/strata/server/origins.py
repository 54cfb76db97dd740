"""Pages of other origins: which of them may read answers (CORS)."""

from __future__ import annotations

from functools import lru_cache

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from strata.server.settings import Settings


class Origins(CORSMiddleware):
    """ASGI middleware that tells browsers which pages may read what they get."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        everybody = "*" in settings.cors_origins
        super().__init__(
            app,
            # Each is told its own name, as llama-server does.
            allow_origin_regex=".*" if everybody else settings.origins.pattern,
            expose_headers=["x-strata-warning", "x-request-id", "request-id"],
            allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
            allow_headers=["*"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """What a browser asks before the request itself. What refuses a page is that it is not
        named."""
        reply = super().preflight_response(request_headers)
        reply.status_code = 200
        return reply


class HeaderNames:
    """ASGI middleware that writes the names of headers as most servers do: HTTP does not tell
    capitals apart, but what people search answers with does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(_capital(name), value) for name, value in message["headers"]]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, named)


@lru_cache(maxsize=64)
def _capital(name: bytes) -> bytes:
    return b"-".join(part.capitalize() for part in name.split(b"-"))
