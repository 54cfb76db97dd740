"""From a conversation with tools to a prompt, and to the answers that it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from strata.decode import SamplingParams
from strata.errors import UsageError
from strata.server.answers import Answers
from strata.server.parsers import AnswerFormat, Parser, Tool, ToolFormat, answer_format
from strata.server.parsers.plain import in_words, tell_of_tools, with_calls_written
from strata.server.service import Service

ToolChoice = Literal["auto", "none", "required"]

_PROMPT_END = 32
"""Tokens at a prompt's end in which it may have begun the answer."""


@dataclass(frozen=True)
class Conversation:
    """What any chat protocol asks for. Messages are as chat templates expect them: ``content`` is
    text, arguments of ``tool_calls`` are objects. ``tool`` is the one that must be called.
    ``counted``: only its tokens are, which need not fit the context."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    choices: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = "auto"
    tool: str | None = None
    continue_last: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = False


def past_call(id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    """An entry of ``tool_calls`` in a message of the assistant."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


async def start_chat(service: Service, wanted: Conversation) -> Answers:
    """Check everything and begin."""
    form = answer_format(_template(service))
    prompt, params = await _prepare(service, wanted, form)
    tools = _offered(wanted)
    # An answer by a grammar has the form that was asked for, and no other.
    plain = wanted.params.grammar is not None or not (tools or form.thinks)
    run = service.run(
        [prompt],
        params,
        choices=wanted.choices,
        continuing=wanted.continue_last,
        show_special=not plain and (bool(tools) or form.shows_special),
    )
    parsers: list[Parser | None] = [None] * wanted.choices
    if not plain:
        end = service.llm.tokenizer.decode(prompt[-_PROMPT_END:], skip_special=False)
        thinking = params.grammar is None
        parsers = [form.parser(tools, end, thinking=thinking) for _ in parsers]
    return Answers(run, parsers, wanted.choices)


async def count_tokens(service: Service, wanted: Conversation) -> int:
    """Tokens of a conversation's prompt."""
    form = answer_format(_template(service))
    return len((await _prepare(service, replace(wanted, counted=True), form))[0])


def _offered(wanted: Conversation) -> Sequence[Tool]:
    return () if wanted.tool_choice == "none" else wanted.tools


async def _prepare(
    service: Service, wanted: Conversation, form: AnswerFormat
) -> tuple[list[int], SamplingParams]:
    params = wanted.params
    source = _template(service)
    tools = _offered(wanted)
    if wanted.tool_choice == "required":
        if not tools:
            raise UsageError("a tool must be called, but there are no tools")
        params = await _with_call(service, wanted, form.calls)
    messages = wanted.messages
    if "tools" not in source:
        messages = tell_of_tools(messages, tools) if tools else in_words(messages)
    elif "tool_calls" not in source:
        messages = with_calls_written(messages, form.calls)
    else:
        messages = form.calls.history(messages)
    known = [tool.as_openai() for tool in tools] if tools and "tools" in source else None
    prompt = await service.chat_prompt(
        messages,
        tools=known,
        continue_final_message=wanted.continue_last,
        variables=wanted.variables,
        counted=wanted.counted,
        ending="" if wanted.params.grammar is None else form.calls.before_a_grammar,
    )
    return prompt, params


def _template(service: Service) -> str:
    """The text of the chat template."""
    tokenizer = service.llm.tokenizer
    template = tokenizer.chat_templates.get("tool_use") or tokenizer.chat_template
    return "" if template is None else template.source


async def _with_call(service: Service, wanted: Conversation, form: ToolFormat) -> SamplingParams:
    if wanted.params.grammar is not None:
        raise UsageError("an answer cannot be both a tool call and by another grammar")
    tools = [tool for tool in wanted.tools if wanted.tool in (None, tool.name)]
    if not tools:
        raise UsageError(f"there is no tool {wanted.tool!r} among the tools")
    tokenizer = service.llm.tokenizer

    def token_id(name: str) -> int | None:
        ids = tokenizer.encode(name, parse_special=True)
        return ids[0] if len(ids) == 1 and not tokenizer.token_bytes(ids[0]) else None

    try:
        source = form.grammar(tools, token_id)
    except RecursionError:
        raise UsageError("the parameters of a tool are nested too deeply") from None
    compiler = service.grammars
    return replace(wanted.params, grammar=await service.compiled(lambda: compiler.lark(source)))


def thinking_variables(wanted: bool | str | None) -> dict[str, Any]:
    """The variables of chat templates that say whether the model thinks, and how much: ``none``,
    ``low``, ``medium``, ``high`` or what else a family knows."""
    if wanted is None:
        return {}
    thinks = wanted not in (False, "none")
    effort = {"reasoning_effort": wanted} if isinstance(wanted, str) and thinks else {}
    # Some families call it the one, some the other.
    return {"enable_thinking": thinks, "thinking": thinks, **effort}
