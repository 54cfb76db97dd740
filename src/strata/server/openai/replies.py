"""What OpenAI's clients get, for the OpenAPI document; the answers are built as dicts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from strata.server.logprobs import ChosenLogprob


class PromptTokensDetails(BaseModel):
    """``cached_tokens`` were not computed anew."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatLogprobs(BaseModel):
    """One entry a token."""

    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    """``arguments`` is JSON."""

    name: str
    arguments: str


class ToolCallReply(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class PromptToken(BaseModel):
    """A token of the prompt, or one that might have stood in its place; 1 is the likeliest."""

    logprob: float
    rank: int | None
    decoded_token: str


class ChatMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None
    function_call: CalledFunction | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]


class ChatCompletion(BaseModel):
    """An answered conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None


class CompletionLogprobs(BaseModel):
    """Lists with one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[dict[str, PromptToken] | None] | None = None


class Completion(BaseModel):
    """Continued texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class ModelCard(BaseModel):
    """A model; ``max_model_len`` is its context here."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(BaseModel):
    """The models that are loaded."""

    object: Literal["list"]
    data: list[ModelCard]
