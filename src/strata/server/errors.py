"""Errors in the body that each ecosystem's clients understand."""

from __future__ import annotations

from typing import Any

from strata.decode.grammar import GrammarsBusy
from strata.engine import ContextExceeded, QueueFull
from strata.errors import StrataError, UsageError
from strata.text import ChatTemplateBusy, ChatTemplateError

RETRY_AFTER_S = 1


class ApiError(StrataError):
    """An error with its HTTP status; ``param`` and ``code`` as OpenAI's errors have them."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class ShuttingDown(StrataError):
    """The server takes no more requests."""


def as_api_error(error: Exception) -> ApiError:
    """The HTTP status of any error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, GrammarsBusy):
        return ApiError(429, str(error), code="grammars_busy")
    if isinstance(error, ChatTemplateBusy):
        return ApiError(503, str(error), code="busy")
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), code="shutting_down")
    if isinstance(error, ContextExceeded):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, (UsageError, ChatTemplateError)):
        # Templates fail on conversations that they refuse: roles that do not alternate, say.
        return ApiError(400, str(error))
    if isinstance(error, StrataError):
        return ApiError(500, str(error))
    return ApiError(500, "the server failed; its log says why")


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The JSON of an error under ``path``."""
    if path.startswith("/api/"):
        return {"error": str(error)}
    kinds = _ANTHROPIC_TYPES if path.startswith("/v1/messages") else _OPENAI_TYPES
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = kinds.get(error.status, other)
    if kinds is _ANTHROPIC_TYPES:
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": "invalid_api_key" if error.status == 401 else error.code,
        }
    }


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers that belong to an error's status."""
    if error.status in (429, 503):
        return {"retry-after": str(RETRY_AFTER_S)}
    return {"www-authenticate": "Bearer"} if error.status == 401 else {}
