"""What OpenAI's clients send. Fields that have no meaning here are ignored, as is their custom."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from strata.server.bodies import (
    Count,
    JsonSchema,
    Lenient,
    RepetitionPenalty,
    Sampling,
    Tools,
    TopLogprobs,
)

Bias = Annotated[float, Field(ge=-100, le=100)]
MOST_BIASES = 4096


def _not_too_many(biases: Any) -> Any:
    # Before each of them is looked at: every wrong one would be an error of its own.
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(f"at most {MOST_BIASES} tokens may have a bias, not {len(biases)}")
    return biases


Biases = Annotated[dict[Annotated[int, Field(ge=0)], Bias], BeforeValidator(_not_too_many)]


class StreamOptions(Lenient):
    """``include_usage``: a last chunk with the usage."""

    include_usage: bool = False


class Common(Sampling):
    """What chat and completions share. The last four, ``top_k`` and ``min_p`` are extensions that
    other servers know too: ``grammar`` is in Lark or GBNF."""

    model: str
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Biases | None = None
    max_tokens: Count | None = None
    repetition_penalty: RepetitionPenalty | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    regex: str | None = None


class TextPart(Lenient):
    """A part of a message; only text can be read here."""

    type: str
    text: str | None = None


class FunctionCall(Lenient):
    """A call that the assistant made; ``arguments`` is JSON."""

    name: str
    arguments: str


class MessageToolCall(Lenient):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Lenient):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class NamedFunction(Lenient):
    """A function by its name."""

    name: str


class NamedTool(Lenient):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class ResponseFormat(Lenient):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Common):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Common):
    """``POST /v1/completions``: a text or texts, or token ids, or lists of them."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[int], Field(min_length=1, fail_fast=True)]
        | Annotated[
            list[Annotated[list[int], Field(fail_fast=True)]], Field(min_length=1, fail_fast=True)
        ]
    )
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
