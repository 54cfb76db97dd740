"""From a conversation with tools to a prompt, and to the answers that it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from strata.decode import SamplingParams
from strata.errors import UsageError
from strata.server.answers import Answers
from strata.server.parsers import Tool, ToolFormat, ToolParser, tool_format
from strata.server.parsers.plain import in_words, tell_of_tools
from strata.server.parsers.thinking import START, Thinking, thinks
from strata.server.service import Service

ToolChoice = Literal["auto", "none", "required"]


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
    prompt, params, form = await _prepare(service, wanted)
    run = service.run(
        [prompt],
        params,
        choices=wanted.choices,
        continuing=wanted.continue_last,
        show_special=form is not None,
    )
    names = [tool.name for tool in wanted.tools]
    parsers: list[ToolParser | None] = [
        form.parser(names) if form else None for _ in range(wanted.choices)
    ]
    if thinks(_template(service)) and params.grammar is None:
        # A grammar is one of the answer: nothing is thought before it.
        tail = service.llm.tokenizer.decode(prompt[-8:], skip_special=False)
        begun = tail.rstrip().endswith(START)
        parsers = [Thinking(parser, begun=begun) for parser in parsers]
    return Answers(run, parsers, wanted.choices)


async def count_tokens(service: Service, wanted: Conversation) -> int:
    """Tokens of a conversation's prompt."""
    return len((await _prepare(service, replace(wanted, counted=True)))[0])


async def _prepare(
    service: Service, wanted: Conversation
) -> tuple[list[int], SamplingParams, ToolFormat | None]:
    params = wanted.params
    source = _template(service)
    if not wanted.tools or wanted.tool_choice == "none":
        if wanted.tool_choice == "required":
            raise UsageError("a tool must be called, but there are no tools")
        messages = wanted.messages if "tools" in source else in_words(wanted.messages)
        return await _prompt(service, wanted, messages, None), params, None
    form = tool_format(source)
    if wanted.tool_choice == "required":
        params = await _with_call(service, wanted, form)
    if "tools" in source:
        tools = [tool.as_openai() for tool in wanted.tools]
        prompt = await _prompt(service, wanted, wanted.messages, tools)
    else:
        prompt = await _prompt(service, wanted, tell_of_tools(wanted.messages, wanted.tools), None)
    return prompt, params, form


def _template(service: Service) -> str:
    """The text of the chat template."""
    tokenizer = service.llm.tokenizer
    template = tokenizer.chat_templates.get("tool_use") or tokenizer.chat_template
    return "" if template is None else template.source


async def _prompt(
    service: Service,
    wanted: Conversation,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int]:
    return await service.chat_prompt(
        messages,
        tools=tools,
        continue_final_message=wanted.continue_last,
        variables=wanted.variables,
        counted=wanted.counted,
    )


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
