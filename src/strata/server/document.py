"""What the OpenAPI document says of every endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from strata.server.replies import EVENT_STREAM, LINES


class OpenAIErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    """Endpoints of llama-server's give none, and their status as ``code``."""
    code: str | int | None


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error as Anthropic's clients read it."""

    type: str
    error: AnthropicErrorDetail


class OllamaError(BaseModel):
    """An error as Ollama's clients read it."""

    error: str


_MEANINGS: Mapping[int, str] = {
    400: "The request cannot be served as it is",
    401: "The API key is missing or wrong",
    403: "This host name or web origin may not call",
    404: "There is no such model",
    413: "The request is too large",
    429: "Too many requests wait",
    500: "The server failed",
    503: "The server is shutting down or has too many connections",
}


_STREAMS: Mapping[str, dict[str, Any]] = {
    EVENT_STREAM: {
        "type": "object",
        "description": "One event; its data is JSON",
        "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    },
    LINES: {"type": "string"},
}


def documented(
    error: type[BaseModel], stream: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """The errors that every endpoint may answer with, and the type of the ``stream`` that one may
    give instead of JSON."""
    streams: dict[int | str, dict[str, Any]] = (
        {200: {"content": {stream: {"schema": _STREAMS[stream]}}}} if stream else {}
    )
    # "default" keeps FastAPI from listing its own 422, which is never sent.
    return {
        **streams,
        **{status: {"model": error, "description": text} for status, text in _MEANINGS.items()},
        "default": {"model": error, "description": "Any other error"},
    }
