"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.server.conversation import Answer, Chat, Conversation, ToolChoice, start_chat
from strata.server.errors import OpenAIError, as_api_error, documented, error_body
from strata.server.openai.common import grammar_of, heading, sampling_params, token_name, usage
from strata.server.openai.replies import ChatCompletion
from strata.server.openai.requests import ChatRequest, Message, NamedTool
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
from strata.server.tools import Piece, Tool, ToolCall
from strata.server.tools.base import parse_json

PATH = "/v1/chat/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    @routes.post(
        PATH,
        response_model=ChatCompletion,
        responses={
            200: {"content": EVENTS},
            **documented(OpenAIError),
        },
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of chunks."""
        service.check_model(body.model)
        conversation = await _conversation(service, body)
        chat = await start_chat(service, conversation)
        writer = _Writer(service, chat, conversation.params.logprobs is not None)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamReply(writer.stream(with_usage), EVENT_STREAM, chat.run)
        await unless_gone(request, chat.run, chat.finish())
        return Reply(writer.whole())


async def _conversation(service: Service, body: ChatRequest) -> Conversation:
    if body.top_logprobs is not None and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs to be true")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    grammar = await grammar_of(service, body, body.response_format)
    choice: ToolChoice = "auto"
    tool = None
    if isinstance(body.tool_choice, NamedTool):
        choice, tool = "required", body.tool_choice.function.name
    elif body.tool_choice is not None:
        choice = body.tool_choice
    return Conversation(
        messages=[plain_message(message) for message in body.messages],
        params=sampling_params(body, max_tokens=limit, logprobs=logprobs, grammar=grammar),
        choices=body.n or 1,
        tools=[
            Tool(
                definition.function.name,
                definition.function.description,
                definition.function.parameters or {"type": "object", "properties": {}},
            )
            for definition in body.tools or ()
        ],
        tool_choice=choice,
        tool=tool,
        variables=body.chat_template_kwargs or {},
    )


def plain_message(message: Message) -> dict[str, Any]:
    """The form that chat templates expect."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    content = message.content
    if isinstance(content, list):
        if any(part.type not in ("text", "refusal", "input_text") for part in content):
            raise UsageError("this server reads text only: a message has a part of another type")
        content = "".join(part.text or "" for part in content)
    if content is None and not message.tool_calls:
        content = ""
    plain: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    # Templates print arguments as JSON: a string would be quoted twice.
                    "arguments": _object_or_text(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return plain


def _object_or_text(arguments: str) -> Any:
    value = parse_json(arguments)
    return value if isinstance(value, dict) else arguments


class _Writer:
    """Puts one conversation's answers into OpenAI's form."""

    def __init__(self, service: Service, chat: Chat, logprobs: bool) -> None:
        self._service = service
        self._chat = chat
        self._logprobs = logprobs
        self._pause_s = service.settings.keepalive_s

    def whole(self) -> dict[str, Any]:
        return {
            **heading(self._service, "chatcmpl", "chat.completion"),
            "choices": [self._choice(index, a) for index, a in enumerate(self._chat.answers)],
            "usage": self._usage(),
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text.strip() or not answer.calls else None,
            "refusal": None,
        }
        if answer.calls:
            message["tool_calls"] = [_call(call) for call in answer.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._tokens(answer.samples),
            "finish_reason": _finish_reason(answer),
        }

    async def stream(self, with_usage: bool) -> AsyncGenerator[str, None]:
        head = heading(self._service, "chatcmpl", "chat.completion.chunk")
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        calls = [0] * len(self._chat.answers)

        def chunk(
            index: int, delta: dict[str, Any], samples: Sequence[Sample], finish: str | None
        ) -> str:
            choice = {
                "index": index,
                "delta": delta,
                "logprobs": self._tokens(samples),
                "finish_reason": finish,
            }
            return sse({**head, "choices": [choice], **rest})

        try:
            for index in range(len(self._chat.answers)):
                yield chunk(index, {"role": "assistant", "content": ""}, (), None)
            async for event in self._chat.pieces(self._pause_s):
                if event is None:
                    yield sse_progress(self._chat.run.progress)
                    continue
                index, pieces, token = event
                answer = self._chat.answers[index]
                shown = answer.samples[-1:] if _is_shown(answer, token.sample) else []
                if self._logprobs and shown and not pieces:
                    pieces = [""]
                for piece in pieces:
                    yield chunk(index, _delta(piece, calls[index]), shown, None)
                    calls[index] += isinstance(piece, ToolCall)
                    shown = []
                if token.finish_reason is not None:
                    yield chunk(index, {}, (), _finish_reason(answer))
            if with_usage:
                yield sse({**head, "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield sse(error_body(PATH, as_api_error(error)))

    def _usage(self) -> dict[str, Any]:
        return usage(self._chat.prompt_tokens, [a.request for a in self._chat.answers])

    def _tokens(self, samples: Sequence[Sample]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {
            "content": [
                {
                    **self._token(sample.token, sample.logprob),
                    "top_logprobs": [self._token(id, logprob) for id, logprob in sample.top],
                }
                for sample in samples
            ],
            "refusal": None,
        }

    def _token(self, id: int, logprob: float | None) -> dict[str, Any]:
        text, data = token_name(self._service, id)
        return {"token": text, "logprob": logprob, "bytes": data}


def _is_shown(answer: Answer, sample: Sample) -> bool:
    return bool(answer.samples) and answer.samples[-1] is sample


def _delta(piece: Piece, number: int) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"content": piece}
    return {"tool_calls": [{"index": number, **_call(piece)}]}


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        # Templates of Mistral accept ids of nine letters and digits only.
        "id": secrets.token_hex(5)[:9],
        "type": "function",
        "function": {"name": call.name, "arguments": to_json(call.arguments)},
    }


def _finish_reason(answer: Answer) -> str | None:
    if answer.calls and answer.finish_reason == "stop":
        return "tool_calls"
    return answer.finish_reason
