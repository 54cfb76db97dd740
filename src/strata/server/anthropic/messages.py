"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.responses import Response

from strata.server.answers import Answer, Answers, respond
from strata.server.anthropic.requests import CountRequest, MessagesRequest, conversation
from strata.server.conversation import count_tokens, start_chat
from strata.server.document import AnthropicError, documented
from strata.server.errors import ApiError, error_body
from strata.server.parsers import CallBegin, CallDelta, Piece, Thought, ToolCall
from strata.server.replies import EVENT_STREAM, Reply, sse, sse_progress, to_json, while_there
from strata.server.service import Service

PATH = "/v1/messages"


class ContentBlock(BaseModel):
    """Text, a tool that is to be used, or what was thought before."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
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
        PATH, response_model=MessageReply, responses=documented(AnthropicError, EVENT_STREAM)
    )
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of events."""
        service.check_model(body.model)
        answers = await while_there(request, _start(service, body))
        return await respond(request, answers, _Writer(service, answers), bool(body.stream))

    @routes.post(
        f"{PATH}/count_tokens", response_model=TokenCount, responses=documented(AnthropicError)
    )
    async def count(body: CountRequest) -> Reply:
        """How many tokens a conversation's prompt has."""
        service.check_model(body.model)
        wanted = await conversation(service, body)
        return Reply({"input_tokens": await count_tokens(service, wanted)})


async def _start(service: Service, body: MessagesRequest) -> Answers:
    return await start_chat(service, await conversation(service, body))


class _Writer:
    media_type = EVENT_STREAM

    def __init__(self, service: Service, answers: Answers) -> None:
        self._answers = answers
        (self._answer,) = answers.choices
        self._pause_s = service.settings.keepalive_s
        self._head = {
            "id": f"msg_{uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": service.name,
        }

    def whole(self) -> dict[str, Any]:
        """See Writer."""
        answer = self._answer
        content: list[dict[str, Any]] = []
        if answer.thoughts:
            content.append(_thinking(answer.thoughts))
        if answer.text.strip() or not answer.calls:
            content.append({"type": "text", "text": answer.text})
        content += [_tool_use(call.id, call.name, _input(call)) for call in answer.calls]
        return {**self._head, "content": content, **_ending(answer), "usage": self._usage()}

    async def stream(self) -> AsyncGenerator[str, None]:
        """See Writer."""
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message={**self._head, **empty, "usage": self._usage()})
        yield _event("ping")
        blocks = _Blocks()
        async for part in self._answers.parts(self._pause_s):
            if part is None:
                yield sse_progress(self._answers.run.progress) + _event("ping")
                continue
            for piece in part[1]:
                yield blocks.add(piece)
        yield blocks.finish()
        yield _event("message_delta", delta=_ending(self._answer), usage=self._usage())
        yield _event("message_stop")

    def failed(self, error: ApiError) -> str:
        """See Writer."""
        return sse(error_body(PATH, error), "error")

    def _usage(self) -> dict[str, int]:
        cached = self._answers.cached_tokens
        return {
            "input_tokens": self._answers.prompt_tokens - cached,
            "output_tokens": self._answers.output_tokens,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }


def _event(kind: str, **data: Any) -> str:
    return sse({"type": kind, **data}, kind)


def _ending(answer: Answer) -> dict[str, Any]:
    sequence = answer.request.stop_checker.stop_string if answer.request else None
    if answer.finish_reason == "length":
        reason = "max_tokens"
    elif answer.calls:
        reason = "tool_use"
    else:
        reason = "end_turn" if sequence is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": sequence if reason == "stop_sequence" else None}


def _tool_use(id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def _input(call: ToolCall) -> dict[str, Any]:
    """The arguments; of a call that was cut short what can be read of them, as clients do."""
    value = call.parsed
    if value is None:
        try:
            value = from_json(call.arguments, allow_inf_nan=False, allow_partial=True)
            to_json(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _thinking(text: str) -> dict[str, Any]:
    # Nobody checks the signature of thoughts that are sent back.
    return {"type": "thinking", "thinking": text, "signature": ""}


class _Blocks:
    """The events of an answer's numbered blocks: thoughts in one, text in one, every call in its
    own."""

    def __init__(self) -> None:
        self._index = -1
        self._open: str | None = None

    def add(self, piece: Piece) -> str:
        if isinstance(piece, str):
            start = "" if self._open == "text" else self._start({"type": "text", "text": ""})
            return start + self._delta({"type": "text_delta", "text": piece})
        if isinstance(piece, Thought):
            start = "" if self._open == "thinking" else self._start(_thinking(""))
            return start + self._delta({"type": "thinking_delta", "thinking": piece.text})
        if isinstance(piece, CallBegin):
            return self._start(_tool_use(piece.id, piece.name, {}))
        if isinstance(piece, CallDelta):
            return self._delta({"type": "input_json_delta", "partial_json": piece.text})
        return self.finish()

    def finish(self) -> str:
        """The end of the block that is open; of an empty one if there was none."""
        start = "" if self._index >= 0 else self._start({"type": "text", "text": ""})
        if self._open is None:
            return start
        self._open = None
        return start + _event("content_block_stop", index=self._index)

    def _start(self, block: dict[str, Any]) -> str:
        stop = self.finish() if self._open else ""
        self._index += 1
        self._open = block["type"]
        return stop + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=self._index, delta=delta)
