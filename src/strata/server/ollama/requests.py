"""What Ollama's clients send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.errors import UsageError
from strata.giving_way import give_way
from strata.server.bodies import (
    Asked,
    Lenient,
    RepetitionPenalty,
    Sampling,
    Text,
    Tools,
    TopLogprobs,
    tools_of,
)
from strata.server.conversation import Conversation, past_call
from strata.server.durations import seconds_of
from strata.server.notes import note
from strata.server.preset import thinking_variables
from strata.server.service import Service
from strata.server.settings import Unknown


class Options(Sampling):
    """How tokens are chosen. Options that load a model are without effect: it is loaded already,
    with a context that ``num_ctx`` cannot raise."""

    idle: ClassVar[frozenset[str]] = frozenset(
        (
            *("num_gpu", "main_gpu", "num_batch", "num_thread", "numa", "use_mmap", "use_mlock"),
            *("low_vram", "vocab_only", "f16_kv", "logits_all", "num_keep", "repeat_last_n"),
            *("num_gqa", "rope_frequency_base", "rope_frequency_scale", "embedding_only"),
        )
    )
    off: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mirostat": (0,),
        "mirostat_tau": (5,),
        "mirostat_eta": (0.1,),
        "typical_p": (1,),
        "tfs_z": (1,),
        "penalize_newline": (True, False),
    }

    num_predict: int | None = None
    num_ctx: int | None = None
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


class OllamaRequest(Asked):
    """What all requests share. A model stays loaded, whatever ``keep_alive`` says."""

    on_unknown: ClassVar[Unknown] = "warn"

    model: Text
    keep_alive: Annotated[float | str, AfterValidator(seconds_of)] | None = None
    options: Options | None = None

    def unknown(self) -> dict[str, list[str]]:
        """See Asked; those of the options, too."""
        found = super().unknown()
        if self.options is not None:
            found |= {f"options.{name}": like for name, like in self.options.unknown().items()}
        return found


class Common(OllamaRequest):
    """What chat and generate share. ``format`` is ``json`` or a JSON schema."""

    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


class ChatRequest(Common):
    """``POST /api/chat``."""

    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    truncate: bool | None = None
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


async def params_of(service: Service, body: Common) -> SamplingParams:
    """SamplingParams of a request."""
    options = body.options or Options()
    limit, seed = options.num_predict, options.seed
    if options.num_ctx is not None and options.num_ctx > service.llm.context:
        note(
            f"options.num_ctx is {options.num_ctx}, but the context is {service.llm.context}: "
            "start the server with --context to have more"
        )
    return options.params(
        service.llm.sampling_defaults,
        repetition_penalty=options.repeat_penalty,
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
    messages = await service.beside(lambda: [_plain(message) for message in body.messages or ()])
    return Conversation(
        messages=messages,
        params=await params_of(service, body),
        tools=tools_of(body.tools),
        variables=variables_of(body),
        continue_last=messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1],
        # As Ollama does, but for truncate: false.
        drops_oldest=body.truncate is not False,
    )


def variables_of(body: Common) -> dict[str, Any]:
    """Variables of the chat template that a request sets."""
    return thinking_variables(body.think)


def _plain(message: Message) -> dict[str, Any]:
    give_way()
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
