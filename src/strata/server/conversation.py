"""From a conversation with tools to a prompt, and from an answer's words back to text and calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from strata.decode import FinishReason, Sample, SamplingParams
from strata.engine import Delta, Request
from strata.errors import UsageError
from strata.server.bridge import Run
from strata.server.service import Service
from strata.server.tools import Piece, Tool, ToolCall, ToolFormat, ToolParser, tool_format
from strata.server.tools.plain import in_words, tell_of_tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class Conversation:
    """What any chat protocol asks for. Messages are as chat templates expect them: ``content`` is
    text, arguments of ``tool_calls`` are objects. ``tool`` is the one that must be called."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    choices: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = "auto"
    tool: str | None = None
    continue_last: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Answer:
    """What one choice has said so far. ``samples`` are those of shown tokens."""

    parser: ToolParser | None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    request: Request | None = None

    def add(self, delta: Delta) -> list[Piece]:
        """Take a token; the text and the calls that became certain with it."""
        self.request = delta.request
        self.finish_reason = delta.finish_reason
        if not ended_by_token(delta):
            self.samples.append(delta.sample)
        pieces: list[Piece] = [delta.text] if delta.text else []
        if self.parser is not None:
            pieces = self.parser.push(delta.text)
            if delta.finish_reason is not None:
                pieces += self.parser.finish()
        for piece in pieces:
            if isinstance(piece, str):
                self.text += piece
            else:
                self.calls.append(piece)
        return pieces

    @property
    def tokens(self) -> int:
        """Tokens chosen, an end token included."""
        return len(self.request.output) if self.request else 0


def ended_by_token(delta: Delta) -> bool:
    """Whether the token is an end token, which is no part of the text."""
    return delta.finish_reason == "stop" and delta.request.ending.stop_string is None


class Chat:
    """A conversation that is being answered: its run, and an Answer a choice."""

    def __init__(self, run: Run, parsers: Sequence[ToolParser | None], prompt_tokens: int) -> None:
        self.run = run
        self.answers = [Answer(parser) for parser in parsers]
        self.prompt_tokens = prompt_tokens

    async def pieces(
        self, pause_s: float | None = None
    ) -> AsyncIterator[tuple[int, list[Piece], Delta] | None]:
        """What came, by choice; None after ``pause_s`` seconds without anything."""
        async for event in self.run.tokens(pause_s):
            if event is None:
                yield None
            else:
                index, delta = event
                yield index, self.answers[index].add(delta), delta

    async def finish(self) -> list[Answer]:
        """All answers, whole."""
        async for _ in self.pieces():
            pass
        return self.answers


async def start_chat(service: Service, wanted: Conversation) -> Chat:
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
    parsers = [form.parser(names) if form else None for _ in range(wanted.choices)]
    return Chat(run, parsers, len(prompt))


async def count_tokens(service: Service, wanted: Conversation) -> int:
    """Tokens of a conversation's prompt."""
    return len((await _prepare(service, wanted))[0])


async def _prepare(
    service: Service, wanted: Conversation
) -> tuple[list[int], SamplingParams, ToolFormat | None]:
    params = wanted.params
    templates = service.llm.tokenizer.chat_templates
    template = templates.get("tool_use") or service.llm.tokenizer.chat_template
    source = "" if template is None else template.source
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

    source = form.grammar(tools, token_id)
    compiler = service.grammars
    return replace(wanted.params, grammar=await service.off_loop(lambda: compiler.lark(source)))
