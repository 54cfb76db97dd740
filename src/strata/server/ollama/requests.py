"""What Ollama's clients send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.errors import UsageError
from strata.server.bodies import (
    Lenient,
    RepetitionPenalty,
    Sampling,
    Text,
    Tools,
    TopLogprobs,
    tools_of,
)
from strata.server.conversation import Conversation, past_call, thinking_variables
from strata.server.service import Service


class Options(Sampling):
    """How tokens are chosen. Options that load a model (num_ctx, num_gpu ...) are ignored: it is
    loaded already."""

    num_predict: int | None = None
    repeat_penalty: RepetitionPenalty | None = None


class CalledFunction(Lenient):
    """A function and its arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolCall(Lenient):
    """A call that the assistant made."""

    id: str | None = None
    function: CalledFunction


class Message(Lenient):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[str], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_name: str | None = None


class Common(Lenient):
    """What chat and generate share. ``format`` is ``json`` or a JSON schema."""

    model: Text
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


class ChatRequest(Common):
    """``POST /api/chat``."""

    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    tools: Tools | None = None


class GenerateRequest(Common):
    """``POST /api/generate``. ``context`` are token ids that come before the prompt."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: Annotated[list[str], Field(fail_fast=True)] | None = None
    context: Annotated[list[int], Field(fail_fast=True)] | None = None


class ShowRequest(Lenient):
    """``POST /api/show``; old clients say ``name``."""

    model: str | None = None
    name: str | None = None


DEFAULTS = SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
"""Ollama's own, but for its repeat penalty: that looks at the last 64 tokens there, and at all of
them here, where 1.1 would do harm."""


async def params_of(service: Service, body: Common) -> SamplingParams:
    """SamplingParams of a request."""
    options = body.options or Options()
    limit, seed = options.num_predict, options.seed
    return options.params(
        DEFAULTS,
        repetition_penalty=options.repeat_penalty or 1.0,
        seed=None if seed is None or seed < 0 else seed,
        # 0 and less: as much as there is room for.
        max_tokens=None if limit is None or limit <= 0 else limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=await _grammar(service, body),
    )


async def _grammar(service: Service, body: Common) -> Grammar | None:
    if not body.format:
        return None
    if isinstance(body.format, str):
        return await service.compiled(service.grammars.json_object)
    return await service.json_schema(body.format)


async def conversation(service: Service, body: ChatRequest) -> Conversation:
    """The conversation of a chat request."""
    return Conversation(
        messages=[_plain(message) for message in body.messages or ()],
        params=await params_of(service, body),
        tools=tools_of(body.tools),
        variables=variables_of(body),
    )


def variables_of(body: Common) -> dict[str, Any]:
    """Variables of the chat template that a request sets."""
    return thinking_variables(body.think)


def _plain(message: Message) -> dict[str, Any]:
    if message.images:
        raise UsageError("this server reads text only: a message has images")
    plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_name is not None:
        plain["name"] = message.tool_name
    if message.thinking is not None:
        plain["thinking"] = message.thinking
    if message.tool_calls:
        plain["tool_calls"] = [
            past_call(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls
        ]
    return plain
