"""What OpenAI's clients send, and what those of vLLM and llama-server send beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from strata.server.bodies import (
    Count,
    FunctionDefinition,
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


Limit = Annotated[int, Field(ge=-1)]
"""Of tokens: -1 is as many as there is room for, 0 none."""

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=1024, fail_fast=True)
]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024, fail_fast=True)
]
PromptLogprobs = Annotated[int, Field(ge=0, le=20)]
Functions = Annotated[list[FunctionDefinition], Field(max_length=128, fail_fast=True)]


class StreamOptions(Lenient):
    """``include_usage``: a last chunk with the usage."""

    include_usage: bool = False


class StructuredOutputs(Lenient):
    """The form of the answer as vLLM says it; one of them."""

    json_form: dict[str, Any] | str | None = Field(alias="json", default=None)
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Common(Sampling):
    """What chat and completions share. From ``repetition_penalty`` on they are extensions, as
    ``top_k`` and ``min_p`` are: vLLM's names, and those of llama-server. ``grammar`` is in Lark or
    GBNF."""

    idle: ClassVar[frozenset[str]] = frozenset(
        (
            # OpenAI's: who asks, where it is kept, and hints.
            *("user", "store", "metadata", "service_tier", "safety_identifier", "prediction"),
            *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
            # vLLM's.
            *("priority", "request_id", "cache_salt", "include_reasoning"),
            # llama-server's: what is kept of prompts, and where.
            *("cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard", "cache_reuse"),
            *("samplers", "min_keep", "reasoning_format", "sse_ping_interval", "repeat_last_n"),
            *("backend_sampling", "return_tokens"),
        )
    )
    off: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "modalities": (["text"],),
        "use_beam_search": (False,),
        "length_penalty": (1.0,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False),
        "include_stop_str_in_output": (False,),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "truncate_prompt_tokens": (-1,),
        "early_stopping": (False,),
        "dynatemp_range": (0,),
        "dynatemp_exponent": (1,),
        "top_n_sigma": (-1,),
        "xtc_probability": (0,),
        "xtc_threshold": (0.1, 0),
        "typical_p": (1,),
        "dry_multiplier": (0,),
        "dry_base": (1.75,),
        "dry_allowed_length": (2,),
        "dry_penalty_last_n": (-1, 0, 64),
        "mirostat": (0,),
        "mirostat_tau": (5,),
        "mirostat_eta": (0.1,),
        "post_sampling_probs": (False,),
        "n_indent": (0,),
        "t_max_predict_ms": (0, -1),
        "lora": ([],),
        "response_fields": ([],),
    }

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Biases | None = None
    max_tokens: Limit | None = None
    repetition_penalty: RepetitionPenalty | None = None
    repeat_penalty: RepetitionPenalty | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: TokenIds | None = None
    n_predict: Limit | None = None
    grammar: str | None = None
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    verbose: bool | None = None


class Beamed(Common):
    """What may be answered by a beam search, as vLLM's clients ask for one."""

    use_beam_search: bool | None = None
    beam_width: Count | None = None
    length_penalty: Annotated[float, Field(ge=-8, le=8)] | None = None


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
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class FunctionName(Lenient):
    """A function by its name."""

    name: str


class NamedTool(Lenient):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedToolNames(Lenient):
    """Which tools may be called, and whether one must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128, fail_fast=True)]


class AllowedTools(Lenient):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolNames


class ResponseFormat(Lenient):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    definition: dict[str, Any] | None = Field(alias="schema", default=None)


class ChatRequest(Beamed):
    """``POST /v1/chat/completions``. ``truncation`` is that of the Responses API: with ``auto`` the
    oldest turns are left out where not all fit the context."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None


class CompletionRequest(Beamed):
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
    best_of: Annotated[int, Field(ge=1, le=1024)] | None = None
