"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from strata.server.anthropic.requests import CountRequest, MessagesRequest, conversation
from strata.server.conversation import Answer, Chat, count_tokens, start_chat
from strata.server.errors import AnthropicError, as_api_error, documented, error_body
from strata.server.replies import (
    EVENT_STREAM,
    EVENTS,
    Reply,
    StreamReply,
    sse,
    sse_progress,
    to_json,
    unless_gone,
)
from strata.server.service import Service
from strata.server.tools import Piece, ToolCall

PATH = "/v1/messages"


class ContentBlock(BaseModel):
    """Text, or a tool that is to be used."""

    type: Literal["text", "tool_use"]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class Usage(BaseModel):
    """``input_tokens`` were computed, ``cache_read_input_tokens`` were known."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageReply(BaseModel):
    """The assistant's turn."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: Usage


class TokenCount(BaseModel):
    """Tokens of a prompt."""

    input_tokens: int


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""

    @routes.post(
        PATH,
        response_model=MessageReply,
        responses={
            200: {"content": EVENTS},
            **documented(AnthropicError),
        },
    )
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of events."""
        service.check_model(body.model)
        chat = await start_chat(service, conversation(body))
        if body.stream:
            return StreamReply(_stream(service, chat), EVENT_STREAM, chat.run)
        (answer,) = await unless_gone(request, chat.run, chat.finish())
        content: list[dict[str, Any]] = []
        if answer.text.strip() or not answer.calls:
            content.append({"type": "text", "text": answer.text})
        content += [_tool_use(call, dict(call.arguments)) for call in answer.calls]
        message = _message(service, chat)
        return Reply({**message, "content": content, **_ending(answer)})

    @routes.post(
        f"{PATH}/count_tokens", response_model=TokenCount, responses=documented(AnthropicError)
    )
    async def count(body: CountRequest) -> Reply:
        """How many tokens a conversation's prompt has."""
        service.check_model(body.model)
        return Reply({"input_tokens": await count_tokens(service, conversation(body))})


def _message(service: Service, chat: Chat) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": service.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(chat),
    }


def _usage(chat: Chat) -> dict[str, int]:
    answer = chat.answers[0]
    cached = answer.request.cached_tokens if answer.request else 0
    return {
        "input_tokens": chat.prompt_tokens - cached,
        "output_tokens": answer.tokens,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }


def _ending(answer: Answer) -> dict[str, Any]:
    sequence = answer.request.ending.stop_string if answer.request else None
    if answer.finish_reason == "length":
        reason = "max_tokens"
    elif answer.calls:
        reason = "tool_use"
    else:
        reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence if reason == "stop_sequence" else None}


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> dict[str, Any]:
    # Templates of Mistral accept ids of nine letters and digits only.
    return {
        "type": "tool_use",
        "id": secrets.token_hex(5)[:9],
        "name": call.name,
        "input": arguments,
    }


async def _stream(service: Service, chat: Chat) -> AsyncGenerator[str, None]:
    def event(kind: str, **data: Any) -> str:
        return sse({"type": kind, **data}, kind)

    blocks = _Blocks()
    try:
        yield event("message_start", message=_message(service, chat))
        yield event("ping")
        async for arrived in chat.pieces(service.settings.keepalive_s):
            if arrived is None:
                yield sse_progress(chat.run.progress) + event("ping")
                continue
            for piece in arrived[1]:
                for kind, data in blocks.add(piece):
                    yield event(kind, **data)
        for kind, data in blocks.finish():
            yield event(kind, **data)
        answer = chat.answers[0]
        yield event("message_delta", delta=_ending(answer), usage=_usage(chat))
        yield event("message_stop")
    except Exception as error:
        yield sse(error_body(PATH, as_api_error(error)), "error")


class _Blocks:
    """Numbers the blocks of an answer: text in one, every call in its own."""

    def __init__(self) -> None:
        self._index = -1
        self._open = False

    def add(self, piece: Piece) -> list[tuple[str, dict[str, Any]]]:
        if isinstance(piece, str):
            events = [] if self._open else self._start({"type": "text", "text": ""})
            return [*events, self._delta({"type": "text_delta", "text": piece})]
        arguments = {"type": "input_json_delta", "partial_json": to_json(piece.arguments)}
        started = self._start(_tool_use(piece, {}))
        return [*started, self._delta(arguments), *self._stop()]

    def finish(self) -> list[tuple[str, dict[str, Any]]]:
        if self._index < 0:
            return [*self._start({"type": "text", "text": ""}), *self._stop()]
        return self._stop()

    def _start(self, block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        stopped = self._stop()
        self._index += 1
        self._open = True
        return [
            *stopped,
            ("content_block_start", {"index": self._index, "content_block": block}),
        ]

    def _delta(self, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return "content_block_delta", {"index": self._index, "delta": delta}

    def _stop(self) -> list[tuple[str, dict[str, Any]]]:
        if not self._open:
            return []
        self._open = False
        return [("content_block_stop", {"index": self._index})]
