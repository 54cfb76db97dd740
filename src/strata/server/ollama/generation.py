"""``POST /api/chat`` and ``/api/generate``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.server.conversation import Answer, Chat, Conversation, start_chat
from strata.server.errors import OllamaError, as_api_error, documented, error_body
from strata.server.ollama.requests import (
    ChatRequest,
    Common,
    GenerateRequest,
    conversation,
    params_of,
    variables_of,
)
from strata.server.openai.common import token_name
from strata.server.replies import LINES, Reply, StreamReply, to_json, unless_gone
from strata.server.service import Service
from strata.server.tools import Piece


class TokenLogprob(BaseModel):
    """A token with its natural log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(TokenLogprob):
    """The chosen token and the most probable ones in its place."""

    top_logprobs: list[TokenLogprob] | None = None


class Figures(BaseModel):
    """What both replies carry. Durations in nanoseconds; figures come with the last part."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[Logprob] | None = None


class ReplyMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[dict[str, Any]] | None = None


class ChatReply(Figures):
    """An answered conversation, or a part of it."""

    message: ReplyMessage


class GenerateReply(Figures):
    """A continued prompt, or a part of it."""

    response: str
    context: list[int] | None = None


Fields = Callable[[Sequence[Piece]], dict[str, Any]]
"""Pieces of an answer in the form of one of the two endpoints."""


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    lines: dict[int | str, dict[str, Any]] = {
        200: {"content": {LINES: {"schema": {"type": "string"}}}},
        **documented(OllamaError),
    }

    @routes.post("/api/chat", response_model=ChatReply, responses=lines)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; as lines of JSON unless ``stream`` is false."""
        service.check_model(body.model)
        if not body.messages:
            return Reply(_loaded(service, _chat_fields([])))
        started = await start_chat(service, await conversation(service, body))
        return await _reply(service, "/api/chat", body, request, started, _chat_fields)

    @routes.post("/api/generate", response_model=GenerateReply, responses=lines)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Answer one prompt, or continue it with ``raw``; lines of JSON unless told otherwise."""
        service.check_model(body.model)
        _refuse_what_is_missing(body)
        if not body.prompt:
            return Reply(_loaded(service, _generate_fields([])))
        started = await _start(service, body, body.prompt)
        return await _reply(service, "/api/generate", body, request, started, _generate_fields)


def _refuse_what_is_missing(body: GenerateRequest) -> None:
    for name in ("suffix", "template", "images"):
        if getattr(body, name):
            raise UsageError(f"{name} is not supported")


async def _start(service: Service, body: GenerateRequest, prompt: str) -> Chat:
    params = await params_of(service, body)
    plain = bool(body.raw) or not service.llm.tokenizer.chat_templates
    if not plain and not body.context:
        messages = [{"role": "user", "content": prompt}]
        if body.system:
            messages.insert(0, {"role": "system", "content": body.system})
        return await start_chat(
            service, Conversation(messages, params, variables=variables_of(body))
        )
    if plain:
        ids = await service.encode(prompt, add_special=not body.context)
    else:
        ids = await service.chat_prompt([{"role": "user", "content": prompt}])
    ids = [*(body.context or ()), *ids]
    run = service.run([ids], params, continuing=plain)
    return Chat(run, [None], len(ids))


async def _reply(
    service: Service,
    path: str,
    body: Common,
    request: Request,
    chat: Chat,
    fields: Fields,
) -> Response:
    if body.stream is not False:
        return StreamReply(_stream(service, path, chat, fields), LINES, chat.run)
    (answer,) = await unless_gone(request, chat.run, chat.finish())
    pieces: list[Piece] = [answer.text, *answer.calls]
    last = _last(service, chat, fields(pieces))
    logprobs = _logprobs(service, answer.samples)
    return Reply({**last, "logprobs": logprobs} if logprobs else last)


async def _stream(
    service: Service, path: str, chat: Chat, fields: Fields
) -> AsyncGenerator[str, None]:
    answer = chat.answers[0]
    seen = 0
    try:
        async for event in chat.pieces():
            assert event is not None, "there is no pause to report"
            new = _logprobs(service, answer.samples[seen:])
            seen = len(answer.samples)
            if event[1] or new:
                part = {**_heading(service), **fields(event[1]), "done": False}
                yield to_json({**part, "logprobs": new} if new else part) + "\n"
        yield to_json(_last(service, chat, fields([]))) + "\n"
    except Exception as error:
        yield to_json(error_body(path, as_api_error(error))) + "\n"


def _heading(service: Service) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return {"model": service.name, "created_at": now}


def _chat_fields(pieces: Sequence[Piece]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(piece for piece in pieces if isinstance(piece, str)),
    }
    calls = [
        {"function": {"name": piece.name, "arguments": dict(piece.arguments)}}
        for piece in pieces
        if not isinstance(piece, str)
    ]
    return {"message": {**message, "tool_calls": calls} if calls else message}


def _generate_fields(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {"response": "".join(piece for piece in pieces if isinstance(piece, str))}


def _loaded(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    return {**_heading(service), **fields, "done": True, "done_reason": "load"}


def _last(service: Service, chat: Chat, fields: dict[str, Any]) -> dict[str, Any]:
    answer = chat.answers[0]
    last = {
        **_heading(service),
        **fields,
        "done": True,
        "done_reason": answer.finish_reason,
        "total_duration": _nanoseconds(perf_counter() - chat.run.arrived),
        "load_duration": 0,
        "prompt_eval_count": chat.prompt_tokens,
        "eval_count": answer.tokens,
        **_durations(answer),
    }
    if "response" in fields and answer.request is not None:
        last["context"] = [*answer.request.prompt, *(s.token for s in answer.request.output)]
    return last


def _durations(answer: Answer) -> dict[str, int]:
    request = answer.request
    if request is None or request.first_token is None or request.last_token is None:
        return {}
    return {
        "prompt_eval_duration": _nanoseconds(
            request.first_token - (request.started or request.submitted)
        ),
        "eval_duration": _nanoseconds(request.last_token - request.first_token),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _logprobs(service: Service, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    def token(id: int, logprob: float | None) -> dict[str, Any]:
        text, data = token_name(service, id)
        return {"token": text, "logprob": logprob, "bytes": data}

    return [
        {
            **token(sample.token, sample.logprob),
            "top_logprobs": [token(id, logprob) for id, logprob in sample.top],
        }
        for sample in samples
        if sample.logprob is not None
    ]
