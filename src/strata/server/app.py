"""The ASGI application: every protocol's routes over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from strata import __version__
from strata.errors import StrataError
from strata.server import anthropic, kv, llama, memory, ollama, openai, plain, vertex
from strata.server.errors import ApiError
from strata.server.guard import Guard, error_reply
from strata.server.invalid import as_invalid
from strata.server.origins import Origins
from strata.server.page import HEADERS, Page
from strata.server.reference import reference_page
from strata.server.replies import CLIENT_GONE, ClientGone
from strata.server.service import Service
from strata.server.telemetry import live


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan starts the engine's thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.bridge.start()
        if service.batches is not None:
            service.batches.start(app)
        try:
            yield
        finally:
            if service.batches is not None:
                await service.batches.stop()

    app = FastAPI(
        title="Strata",
        version=__version__,
        description="A language model behind the protocols of OpenAI, Anthropic and Ollama.",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; /docs is one of our own.
        docs_url=None,
        redoc_url=None,
    )

    @cache
    def page_of_endpoints() -> str:
        return reference_page(app.openapi())

    async def reference() -> HTMLResponse:
        return HTMLResponse(page_of_endpoints(), headers=HEADERS)

    for protocol in (openai, anthropic, ollama, llama, vertex, plain, memory, kv, live):
        app.include_router(protocol.router(service))
    settings = service.settings
    if "page" not in settings.without:
        page = Page()
        app.mount("/web", page, name="web")
        app.add_api_route("/", page.index, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_api_route("/docs", reference, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_exception_handler(StrataError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(
        Guard,
        settings=settings,
        metrics=service.metrics,
        admission=service.admission,
        busy=lambda: service.bridge.status.running > 0,
    )
    if settings.cors_origins or settings.loopback:
        app.add_middleware(Origins, settings=settings)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=CLIENT_GONE)
    return error_reply(request.url.path, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_reply(request.url.path, as_invalid(error.errors(), error.body))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):
        # FastAPI wraps what the reading of the body raised.
        return error_reply(request.url.path, error.__cause__)
    what = f"{request.method} {request.url.path}"
    messages = {404: f"there is no {what} here", 405: f"{what} is not possible"}
    message = messages.get(error.status_code, str(error.detail))
    reply = error_reply(request.url.path, ApiError(error.status_code, message))
    reply.headers.update(error.headers or {})
    return reply
