"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.server.answers import Answer, Answers, respond
from strata.server.bodies import tools_of
from strata.server.conversation import (
    Conversation,
    ToolChoice,
    past_call,
    start_chat,
    thinking_variables,
)
from strata.server.document import OpenAIError, documented
from strata.server.logprobs import logprobs_of
from strata.server.openai.params import grammar_of, sampling_params
from strata.server.openai.replies import ChatCompletion
from strata.server.openai.requests import ChatRequest, Message, NamedTool
from strata.server.openai.writer import OpenAIWriter
from strata.server.parsers import CallBegin, CallDelta, Piece, Thought, ToolCall
from strata.server.parsers.base import parse_json
from strata.server.replies import EVENT_STREAM, while_there
from strata.server.service import Service

PATH = "/v1/chat/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    @routes.post(
        PATH, response_model=ChatCompletion, responses=documented(OpenAIError, EVENT_STREAM)
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of chunks."""
        service.check_model(body.model)
        answers = await while_there(request, _start(service, body))
        return await respond(request, answers, _Writer(service, answers, body), bool(body.stream))


async def _start(service: Service, body: ChatRequest) -> Answers:
    return await start_chat(service, await _conversation(service, body))


async def _conversation(service: Service, body: ChatRequest) -> Conversation:
    if body.top_logprobs and not body.logprobs:
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
        tools=tools_of(body.tools),
        tool_choice=choice,
        tool=tool,
        variables=_variables(body),
    )


def _variables(body: ChatRequest) -> dict[str, Any]:
    return {**thinking_variables(body.reasoning_effort), **(body.chat_template_kwargs or {})}


def plain_message(message: Message) -> dict[str, Any]:
    """The form that chat templates expect."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    content = message.content
    if isinstance(content, list):
        if any(part.type not in ("text", "refusal", "input_text") for part in content):
            raise UsageError("this server reads text only: a message has a part of another type")
        content = "".join(part.text or "" for part in content)
    # Templates ask for the text of a message that has none, too.
    plain: dict[str, Any] = {"role": role, "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            # Templates print arguments as JSON: a string would be quoted twice.
            past_call(call.id, call.function.name, _object_or_text(call.function.arguments))
            for call in message.tool_calls
        ]
    return plain


def _object_or_text(arguments: str) -> Any:
    value = parse_json(arguments)
    return value if isinstance(value, dict) else arguments


class _Writer(OpenAIWriter):
    path = PATH
    prefix = "chatcmpl"
    objects = ("chat.completion", "chat.completion.chunk")

    def __init__(self, service: Service, answers: Answers, body: ChatRequest) -> None:
        super().__init__(service, answers, body)
        self._logprobs = bool(body.logprobs)
        self._calls = [0] * len(answers.choices)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWriter."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text.strip() or not answer.calls else None,
            "refusal": None,
        }
        if answer.thoughts:
            message["reasoning_content"] = answer.thoughts
        if answer.calls:
            message["tool_calls"] = [
                _call(call.id, call.name, call.arguments) for call in answer.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._tokens(answer.samples),
            "finish_reason": _finish_reason(answer),
        }

    def beginning(self, index: int) -> dict[str, Any]:
        """See OpenAIWriter."""
        return self._chunk(index, {"role": "assistant", "content": ""}, [])

    def chunks(
        self, index: int, answer: Answer, pieces: list[Piece], samples: list[Sample]
    ) -> Iterator[dict[str, Any]]:
        """See OpenAIWriter."""
        if self._logprobs and samples and all(isinstance(piece, ToolCall) for piece in pieces):
            pieces = [""]
        for piece in pieces:
            if not isinstance(piece, ToolCall):
                yield self._chunk(index, self._delta(index, piece), samples)
                samples = []
        if answer.finish_reason is not None:
            yield {**self._chunk(index, {}, []), "finish_reason": _finish_reason(answer)}

    def _chunk(self, index: int, delta: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
        logprobs = self._tokens(samples)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _delta(self, index: int, piece: str | Thought | CallBegin | CallDelta) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"content": piece}
        if isinstance(piece, Thought):
            return {"reasoning_content": piece.text}
        if isinstance(piece, CallBegin):
            self._calls[index] += 1
            part = _call(piece.id, piece.name, "")
        else:
            part = {"function": {"arguments": piece.text}}
        return {"tool_calls": [{"index": self._calls[index] - 1, **part}]}

    def _tokens(self, samples: list[Sample]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": logprobs_of(self.tokenizer, samples), "refusal": None}


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish_reason(answer: Answer) -> str | None:
    if answer.calls and answer.finish_reason == "stop":
        return "tool_calls"
    return answer.finish_reason
