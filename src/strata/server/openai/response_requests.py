"""What clients of OpenAI's Responses send, and its translation to a conversation.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from strata.decode.constraint import Grammar
from strata.errors import UsageError
from strata.server.bodies import Drawing, Lenient, ToolName, TopLogprobs, allowed
from strata.server.conversation import Conversation, ToolChoice, past_call
from strata.server.openai.requests import Limit
from strata.server.parsers import Tool
from strata.server.parsers.base import parse_json
from strata.server.preset import thinking_variables
from strata.server.service import Service


class Part(Lenient):
    """A part of an item's content; only text can be read here."""

    type: str
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[Part], Field(fail_fast=True)]


class Item(Lenient):
    """A message, a call that was made, its result, or what was thought."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Parts | None = None


class FunctionTool(Lenient):
    """A tool; functions are the only kind."""

    type: str
    name: ToolName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Choice(Lenient):
    """The tool that must be called, or those that may."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None


class TextFormat(Lenient):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    definition: dict[str, Any] | None = Field(alias="schema", default=None)


class TextOptions(Lenient):
    """How the answer is given."""

    format: TextFormat | None = None


class Reasoning(Lenient):
    """How much is thought before the answer."""

    effort: str | None = None


class ResponseRequest(Drawing):
    """``POST /v1/responses``."""

    idle: ClassVar[frozenset[str]] = frozenset(
        (
            *("user", "service_tier", "safety_identifier", "prompt_cache_key", "include"),
            *("prompt_cache_retention", "stream_options", "max_tool_calls"),
            "prompt_cache_options",
        )
    )
    off: ClassVar[Mapping[str, tuple[Any, ...]]] = {"background": (False,)}

    model: str | None = None
    input: str | Annotated[list[Item], Field(fail_fast=True)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Limit | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: TopLogprobs | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    labels: Annotated[dict[str, str], Field(max_length=16)] | None = Field(
        alias="metadata", default=None
    )


async def conversation(
    service: Service, body: ResponseRequest, before: Sequence[Mapping[str, Any]]
) -> Conversation:
    """The conversation of a request, after the messages of an earlier one."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    messages += [dict(message) for message in before]
    messages += await service.beside(lambda: messages_of(body.input))
    if not any(message["role"] != "system" for message in messages):
        raise UsageError("input: a text or a message is expected")
    tools, choice, tool = _tools(body)
    limit = body.max_output_tokens
    last = messages[-1]
    return Conversation(
        messages=messages,
        params=body.params(
            service.llm.sampling_defaults,
            max_tokens=None if limit is None or limit < 0 else max(limit, 1),
            logprobs=body.top_logprobs,
            grammar=await _grammar(service, body),
        ),
        tools=tools,
        tool_choice=choice,
        tool=tool,
        variables=thinking_variables(body.reasoning.effort if body.reasoning else None),
        continue_last=last["role"] == "assistant" and "tool_calls" not in last,
        parallel_calls=body.parallel_tool_calls is not False,
        silent=limit == 0,
        drops_oldest=body.truncation == "auto",
        progress=bool(body.stream and body.return_progress),
    )


def messages_of(given: str | list[Item] | None) -> list[dict[str, Any]]:
    """Items in the form that chat templates expect: a turn's thoughts, text and calls are one
    message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    thoughts = ""
    for item in given or ():
        if item.type == "reasoning":
            thoughts += _text(item.content)
        elif item.type == "message":
            if item.role is None:
                raise UsageError("input: a message has no role")
            role = "system" if item.role == "developer" else item.role
            message: dict[str, Any] = {"role": role, "content": _text(item.content)}
            if role == "assistant" and thoughts:
                message["reasoning_content"] = thoughts
            thoughts = ""
            messages.append(message)
        elif item.type == "function_call":
            if item.name is None:
                raise UsageError("input: a function_call has no name")
            last = messages[-1] if messages else None
            if last is None or last["role"] != "assistant":
                last = {"role": "assistant", "content": ""}
                if thoughts:
                    last["reasoning_content"] = thoughts
                thoughts = ""
                messages.append(last)
            arguments = parse_json(item.arguments or "{}")
            last.setdefault("tool_calls", []).append(
                past_call(
                    item.call_id,
                    item.name,
                    arguments if isinstance(arguments, dict) else item.arguments,
                )
            )
        elif item.type == "function_call_output":
            messages.append(
                {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
            )
        else:
            raise UsageError(f"input: items of type {item.type!r} cannot be read here")
    return messages


def _text(content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    known = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
    for part in content:
        if part.type not in known:
            raise UsageError(f"this server reads text only, not parts of type {part.type!r}")
    return "".join(part.text or part.refusal or "" for part in content)


def _tools(body: ResponseRequest) -> tuple[list[Tool], ToolChoice, str | None]:
    tools = []
    for tool in body.tools or ():
        if tool.type != "function" or tool.name is None:
            raise UsageError(f"tools: only functions can be called here, not {tool.type!r}")
        parameters = tool.parameters or {"type": "object", "properties": {}}
        tools.append(Tool(tool.name, tool.description, parameters))
    choice = body.tool_choice
    if isinstance(choice, Choice):
        if choice.type == "function":
            if choice.name is None:
                raise UsageError("tool_choice: a function is to be called, but none is named")
            return tools, "required", choice.name
        names = [tool.name for tool in choice.tools or () if tool.name is not None]
        return allowed(tools, names), choice.mode or "auto", None
    return tools, "required" if choice == "any" else choice or "auto", None


async def _grammar(service: Service, body: ResponseRequest) -> Grammar | None:
    form = body.text and body.text.format
    if not form or form.type == "text":
        return None
    if form.type == "json_object":
        return await service.compiled(service.grammars.json_object)
    if form.definition is None:
        raise UsageError("text.format: a json_schema needs a schema")
    return await service.json_schema(form.definition)
