"""What Anthropic's clients send, and its translation to a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from strata.decode import SamplingParams
from strata.errors import UsageError
from strata.server.bodies import Asked, Count, Drawing, JsonSchema, Lenient, Stops, ToolName
from strata.server.conversation import Conversation, ToolChoice, past_call
from strata.server.parsers import Tool
from strata.server.preset import thinking_variables
from strata.server.service import Service


class Source(Lenient):
    """Where the text of a document is."""

    type: str
    data: str | None = None
    content: str | Blocks | None = None


class Block(Lenient):
    """A part of a message: text, thinking, tool_use, tool_result, document or search_result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Blocks | None = None
    title: str | None = None
    source: str | Source | None = None
    is_error: bool | None = None


Blocks = Annotated[list[Block], Field(fail_fast=True)]


class Message(Lenient):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ToolDefinition(Lenient):
    """A tool of the client's own; of the others, which Anthropic defines, only the name is sent."""

    type: str | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoiceParam(Lenient):
    """Whether a tool may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(Lenient):
    """Whether the model thinks before it answers, where it can."""

    type: str


class CountRequest(Asked):
    """``POST /v1/messages/count_tokens``."""

    idle: ClassVar[frozenset[str]] = frozenset(
        (
            *("metadata", "service_tier", "cache_control", "context_management", "speed"),
            *("betas", "anthropic_beta", "inference_geo"),
        )
    )
    off: ClassVar[Mapping[str, tuple[Any, ...]]] = {"mcp_servers": ([],)}

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    system: str | Blocks | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None


class OutputFormat(JsonSchema):
    """The form of the answer."""

    type: Literal["json_schema"]


class OutputConfig(Lenient):
    """How the answer is given; only its form can be chosen here."""

    format: OutputFormat | None = None


class MessagesRequest(CountRequest, Drawing):
    """``POST /v1/messages``."""

    max_tokens: Count
    output_config: OutputConfig | None = None
    stop_sequences: Stops | None = None
    stream: bool | None = None


_TOOL_CHOICES: dict[str, ToolChoice] = {
    "auto": "auto",
    "any": "required",
    "tool": "required",
    "none": "none",
}


def _messages(body: CountRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text(body.system)})
    for message in body.messages:
        for plain in _plain(message):
            _append(messages, plain)
    return messages


async def conversation(service: Service, body: CountRequest) -> Conversation:
    """The conversation of a request; one that ends with the assistant's turn is continued there."""
    messages = await service.beside(lambda: _messages(body))
    choice = body.tool_choice or ToolChoiceParam(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise UsageError("tool_choice: a tool is to be called, but none is named")
    return Conversation(
        messages=messages,
        params=await _params(service, body),
        tools=_tools(body),
        tool_choice=_TOOL_CHOICES[choice.type],
        tool=choice.name if choice.type == "tool" else None,
        variables=thinking_variables(
            body.thinking is not None and body.thinking.type != "disabled"
        ),
        continue_last=messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1],
        parallel_calls=not choice.disable_parallel_tool_use,
    )


def _tools(body: CountRequest) -> list[Tool]:
    for tool in body.tools or ():
        if tool.type not in (None, "custom"):
            raise UsageError(
                f"tools: only the client's own can be called here, not {tool.type!r}: leave "
                "out the type and give an input_schema"
            )
    return [
        Tool(tool.name, tool.description, tool.input_schema or {"type": "object"})
        for tool in body.tools or ()
    ]


async def _params(service: Service, body: CountRequest) -> SamplingParams:
    if not isinstance(body, MessagesRequest):
        return SamplingParams()
    form = body.output_config and body.output_config.format
    return body.params(
        service.llm.sampling_defaults,
        stop=body.stop_sequences or (),
        max_tokens=body.max_tokens,
        grammar=await service.json_schema(form.definition) if form else None,
    )


def _append(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Turns of one role in a row are one turn, by the protocol; templates often insist on it."""
    last = messages[-1] if messages else None
    if (
        last
        and last.keys() == message.keys() == {"role", "content"}
        and last["role"] == (message["role"])
    ):
        last["content"] += "\n\n" + message["content"]
    else:
        messages.append(message)


def _plain(message: Message) -> list[dict[str, Any]]:
    """The form that chat templates expect; results of tools are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    out: list[dict[str, Any]] = []
    texts: list[Block] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        if block.type == "tool_result":
            out.append(
                {
                    "role": "tool",
                    "tool_call_id": block.tool_use_id,
                    "content": _text(block.content or ""),
                }
            )
        elif block.type == "tool_use":
            if block.name is None:
                raise UsageError("a tool_use block has no name")
            calls.append(past_call(block.id, block.name, block.input or {}))
        else:
            texts.append(block)
    if calls or texts or not out:
        plain: dict[str, Any] = {"role": message.role, "content": _text(texts)}
        thoughts = "".join(block.thinking or "" for block in texts if block.type == "thinking")
        if thoughts:
            plain["reasoning_content"] = thoughts
        if calls:
            plain["tool_calls"] = calls
        out.append(plain)
    return out


def _document(block: Block) -> str:
    """The text of a document or a search result, with what it is called."""
    source, where = block.source, ""
    content: str | list[Block] | None = block.content
    if isinstance(source, Source):
        if source.type not in ("text", "content"):
            raise UsageError(f"this server reads text only, not documents from {source.type!r}")
        content = source.data if source.type == "text" else source.content
    elif source:
        where = f"Source: {source}\n"
    title = f"Title: {block.title}\n" if block.title else ""
    return f"<document>\n{title}{where}{_text(content or '')}\n</document>"


def _text(content: str | list[Block]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if block.type == "text":
            texts.append(block.text or "")
        elif block.type in ("document", "search_result"):
            texts.append(_document(block))
        elif block.type not in ("thinking", "redacted_thinking"):
            raise UsageError(f"this server reads text only, not blocks of type {block.type!r}")
    return "\n".join(texts)
