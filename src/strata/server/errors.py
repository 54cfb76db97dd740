"""Errors in the body that each ecosystem's clients understand."""

from __future__ import annotations

from typing import Any, Literal

from strata.decode.grammar import GrammarsBusy
from strata.engine import ContextExceeded, QueueFull
from strata.errors import StrataError, UsageError
from strata.text import ChatTemplateBusy, ChatTemplateError

RETRY_AFTER_S = 1

_TOLD = 1000
"""Characters of the beginning of a message, and of its end: requests are quoted in some."""

Protocol = Literal["openai", "anthropic", "ollama", "llama"]


class ApiError(StrataError):
    """An error with its HTTP status; ``param`` and ``code`` as OpenAI's errors have them.
    ``overflow``: the tokens that there are, and those that there may be."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        overflow: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.overflow = overflow


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
        return ApiError(
            400,
            str(error),
            code="context_length_exceeded",
            overflow=(error.tokens, error.most),
        )
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
_LLAMA_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "unavailable_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_ASKED = {
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/rerank": "documents",
    "/v1/responses": "input",
}
"""Where a text that is too long stands, if not in ``messages``."""


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The JSON of an error under ``path``."""
    protocol = protocol_of(path)
    asked = _ASKED.get(path, "messages")
    message = _message(protocol, error, asked)
    if len(message) > 2 * _TOLD:
        message = f"{message[:_TOLD]} ... {message[-_TOLD:]}"
    if protocol == "ollama":
        return {"error": message}
    if protocol == "llama":
        return {"error": _llama(error, message)}
    kinds = _ANTHROPIC_TYPES if protocol == "anthropic" else _OPENAI_TYPES
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = kinds.get(error.status, other)
    if kinds is _ANTHROPIC_TYPES:
        return {"type": "error", "error": {"type": kind, "message": message}}
    param = asked if error.overflow is not None else error.param
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param and param[:_TOLD],
            "code": "invalid_api_key" if error.status == 401 else error.code,
        }
    }


def protocol_of(path: str) -> Protocol:
    """Whose clients use a path."""
    if path.startswith("/api/"):
        return "ollama"
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "llama"


def _message(protocol: Protocol, error: ApiError, asked: str) -> str:
    """What went wrong. Clients know that a prompt is too long by the words of each protocol."""
    if error.overflow is None:
        return str(error)
    tokens, most = error.overflow
    if protocol == "openai":
        words = (
            f"This model's maximum context length is {most} tokens. However, your {asked} "
            f"resulted in {tokens} tokens. Please reduce the length of the {asked}."
        )
    elif protocol == "anthropic":
        words = f"prompt is too long: {tokens} tokens > {most} maximum"
    elif protocol == "llama":
        words = (
            f"request ({tokens} tokens) exceeds the available context size ({most} tokens), try "
            "increasing it"
        )
    else:
        words = "the input length exceeds the context length"
    return f"{words} ({error})"


def _llama(error: ApiError, message: str) -> dict[str, Any]:
    """llama-server's own form."""
    kind = _LLAMA_TYPES.get(error.status, "server_error")
    found: dict[str, Any] = {"code": error.status, "message": message, "type": kind}
    if error.overflow is not None:
        tokens, most = error.overflow
        found |= {"type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": most}
    return found


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers that belong to an error's status."""
    if error.status in (429, 503):
        return {"retry-after": str(RETRY_AFTER_S)}
    return {"www-authenticate": "Bearer"} if error.status == 401 else {}
