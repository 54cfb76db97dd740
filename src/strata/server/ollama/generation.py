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
from strata.server.answers import Answer, Answers, respond
from strata.server.conversation import Conversation, start_chat
from strata.server.document import OllamaError, documented
from strata.server.errors import ApiError, error_body
from strata.server.infill import infill_prompt
from strata.server.logprobs import ChosenLogprob, logprobs_of
from strata.server.notes import note
from strata.server.ollama.go_template import filled
from strata.server.ollama.requests import (
    ChatRequest,
    Common,
    GenerateRequest,
    conversation,
    params_of,
    variables_of,
)
from strata.server.parsers import CallBegin, CallDelta, Piece, Thought, ToolCall
from strata.server.replies import LINES, Reply, to_json, while_there
from strata.server.service import Service


class Figures(BaseModel):
    """What both replies carry. Durations in nanoseconds; figures come with the last part."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[ChosenLogprob] | None = None


class ReplyMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatReply(Figures):
    """An answered conversation, or a part of it."""

    message: ReplyMessage


class GenerateReply(Figures):
    """A continued prompt, or a part of it."""

    response: str
    thinking: str | None = None
    context: list[int] | None = None


Fields = Callable[[Sequence[Piece]], dict[str, Any]]
"""Pieces of an answer in the form of one of the two endpoints."""


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    documents = documented(OllamaError, LINES)

    async def reply(
        request: Request, answers: Answers, body: Common, path: str, fields: Fields
    ) -> Response:
        writer = _Writer(service, answers, body, path, fields)
        return await respond(request, answers, writer, body.stream is not False)

    @routes.post("/api/chat", response_model=ChatReply, responses=documents)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; as lines of JSON unless ``stream`` is false."""
        service.check_model(body.model)
        if not body.messages:
            return Reply(_loaded(service, body, _chat_fields([])))
        answers = await while_there(request, _start_chat(service, body))
        return await reply(request, answers, body, "/api/chat", _chat_fields)

    @routes.post("/api/generate", response_model=GenerateReply, responses=documents)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        """Answer one prompt, or continue it with ``raw``; lines of JSON unless told otherwise."""
        service.check_model(body.model)
        _refuse_what_is_missing(body)
        if not body.prompt:
            return Reply(_loaded(service, body, _generate_fields([])))
        answers = await while_there(request, _start(service, body, body.prompt))
        return await reply(request, answers, body, "/api/generate", _generate_fields)


def _refuse_what_is_missing(body: GenerateRequest) -> None:
    if body.images:
        raise UsageError("this server reads text only: the request has images")


async def _start_chat(service: Service, body: ChatRequest) -> Answers:
    return await start_chat(service, await conversation(service, body))


async def _start(service: Service, body: GenerateRequest, prompt: str) -> Answers:
    params = await params_of(service, body)
    if body.template and not body.raw:
        values = {"System": body.system or "", "Prompt": prompt, "Suffix": body.suffix or ""}
        ids = await service.encode(filled(body.template, values), add_special=not body.context)
        run = service.run([[*(body.context or ()), *ids]], params, continuing=False)
        return Answers(run, [None], 1)
    plain = bool(body.raw) or not service.llm.tokenizer.chat_templates
    if not plain and not body.context and not body.suffix:
        messages = [{"role": "user", "content": prompt}]
        if body.system:
            messages.insert(0, {"role": "system", "content": body.system})
        return await start_chat(
            service, Conversation(messages, params, variables=variables_of(body))
        )
    if body.suffix:
        ids = await infill_prompt(service, prompt, body.suffix)
    elif plain:
        ids = await service.encode(prompt, add_special=not body.context)
    else:
        ids = await service.chat_prompt([{"role": "user", "content": prompt}])
    ids = [*(body.context or ()), *ids]
    run = service.run([ids], params, continuing=plain)
    return Answers(run, [None], 1)


class _Writer:
    media_type = LINES

    def __init__(
        self, service: Service, answers: Answers, body: Common, path: str, fields: Fields
    ) -> None:
        self._service = service
        self._answers = answers
        (self._answer,) = answers.choices
        self._logprobs = bool(body.logprobs)
        self._path = path
        self._fields = fields

    def whole(self) -> dict[str, Any]:
        """See Writer."""
        answer = self._answer
        return self._last([Thought(answer.thoughts), answer.text, *answer.calls], answer.samples)

    async def stream(self) -> AsyncGenerator[str, None]:
        """See Writer."""
        async for part in self._answers.parts(self._service.settings.keepalive_s, whole_calls=True):
            if part is None:
                # That the connection lives is said by an empty part: lines have no comments.
                yield to_json(self._part([], [])) + "\n"
                continue
            _, found, samples = part
            # Calls are told of whole.
            pieces = [piece for piece in found if not isinstance(piece, CallBegin | CallDelta)]
            if pieces or (self._logprobs and samples):
                yield to_json(self._part(pieces, samples)) + "\n"
        yield to_json(self._last([], [])) + "\n"

    def failed(self, error: ApiError) -> str:
        """See Writer."""
        return to_json(error_body(self._path, error)) + "\n"

    def _part(self, pieces: Sequence[Piece], samples: Sequence[Sample]) -> dict[str, Any]:
        part = {**_heading(self._service), **self._fields(pieces), "done": False}
        if self._logprobs and samples:
            part["logprobs"] = logprobs_of(self._service.llm.tokenizer, samples)
        return part

    def _last(self, pieces: Sequence[Piece], samples: Sequence[Sample]) -> dict[str, Any]:
        answer, answers = self._answer, self._answers
        last = {
            **self._part(pieces, samples),
            "done": True,
            "done_reason": answer.finish_reason,
            "total_duration": _nanoseconds(perf_counter() - answers.run.arrived),
            "load_duration": 0,
            "prompt_eval_count": answers.prompt_tokens,
            "eval_count": answer.tokens,
            **_durations(answer),
        }
        if "response" in last and answer.request is not None:
            last["context"] = [*answer.request.prompt, *(s.token for s in answer.request.output)]
        return last


def _heading(service: Service) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return {"model": service.name, "created_at": now}


def _chat_fields(pieces: Sequence[Piece]) -> dict[str, Any]:
    message = {"role": "assistant", "content": _text(pieces), **_thinking(pieces)}
    # Arguments are objects here: of a call that was cut short there is none.
    calls = [
        {"id": piece.id, "function": {"name": piece.name, "arguments": arguments}}
        for piece in pieces
        if isinstance(piece, ToolCall) and (arguments := piece.parsed) is not None
    ]
    return {"message": {**message, "tool_calls": calls} if calls else message}


def _generate_fields(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {"response": _text(pieces), **_thinking(pieces)}


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def _thinking(pieces: Sequence[Piece]) -> dict[str, str]:
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    return {"thinking": thoughts} if thoughts else {}


def _loaded(service: Service, body: Common, fields: dict[str, Any]) -> dict[str, Any]:
    reason = "load"
    if body.keep_alive == 0:
        reason = "unload"
        note("keep_alive is without effect: the model stays until the server ends")
    return {**_heading(service), **fields, "done": True, "done_reason": reason}


def _durations(answer: Answer) -> dict[str, int]:
    request = answer.request
    if request is None or request.first_token is None or request.last_token is None:
        return {}
    started = request.started or request.submitted
    return {
        "prompt_eval_duration": _nanoseconds(request.first_token - started),
        "eval_duration": _nanoseconds(request.last_token - request.first_token),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
