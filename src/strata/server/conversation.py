"""From a conversation with tools to a prompt, and to the answers that it gets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from itertools import accumulate
from operator import neg
from typing import Any, Literal

from strata.decode import SamplingParams
from strata.decode.schemas import enforced
from strata.engine import ContextExceeded
from strata.errors import UsageError
from strata.records import dataclass
from strata.server.answers import Answers
from strata.server.notes import note
from strata.server.parsers import AnswerFormat, Parser, Tool, ToolFormat, answer_format
from strata.server.parsers.plain import in_words, tell_of_tools, with_calls_written
from strata.server.service import Service, note_left_open

ToolChoice = Literal["auto", "none", "required"]

_ROOM = 4
"""Where turns are left out: what part of the context an answer has at most."""

_CHARACTERS = 4
_MARKUP = 16
"""Of a token, and what a template writes around a message, where a text is not encoded yet."""

_ESTIMATES = 2
_NEAR = 2
"""How often the turns that fit are estimated, by those that were encoded last, and how far from
there they are looked for step by step."""

_PROMPT_END = 32
"""Tokens at a prompt's end in which it may have begun the answer."""


@dataclass(frozen=True)
class Conversation:
    """What any chat protocol asks for. Messages are as chat templates expect them: ``content`` is
    text, arguments of ``tool_calls`` are objects. ``tool`` is the one that must be called.
    ``begin_answer`` ends the prompt with the beginning of the assistant's turn. One call at most is
    taken without ``parallel_calls``; a ``silent`` answer has no token. With
    ``drops_oldest`` the oldest turns are left out where not all fit the context, and that is
    noted. ``progress``: see ``Service.run``."""

    messages: Sequence[Mapping[str, Any]]
    params: SamplingParams
    choices: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = "auto"
    tool: str | None = None
    continue_last: bool = False
    begin_answer: bool = True
    parallel_calls: bool = True
    silent: bool = False
    drops_oldest: bool = False
    progress: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


def past_call(id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    """An entry of ``tool_calls`` in a message of the assistant."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@dataclass(frozen=True)
class ReadyChat:
    """What is to be run of a conversation; ``parser`` makes one for each answer to it."""

    prompt: list[int]
    params: SamplingParams
    show_special: bool
    parser: Callable[[], Parser | None]


async def start_chat(service: Service, wanted: Conversation) -> Answers:
    """Check everything and begin."""
    ready = await ready_chat(service, wanted)
    run = service.run(
        [ready.prompt],
        ready.params,
        choices=wanted.choices,
        continuing=wanted.continue_last,
        show_special=ready.show_special,
        progress=wanted.progress,
    )
    parsers = [ready.parser() for _ in range(wanted.choices)]
    answers = Answers(run, parsers, wanted.choices)
    for answer in answers.choices:
        answer.silent, answer.one_call = wanted.silent, not wanted.parallel_calls
    return answers


async def ready_chat(service: Service, wanted: Conversation) -> ReadyChat:
    """Check everything and make the prompt."""
    form = answer_format(_template(service))
    wanted = _with_preset(service, wanted)
    text, params = await _prepare(service, wanted, form)
    try:
        prompt = await service.encode(text)
    except ContextExceeded:
        if not wanted.drops_oldest:
            raise
        prompt = await _without_oldest(service, replace(wanted, params=params), form)
    tools = _offered(wanted)
    # An answer by a grammar has the form that was asked for, and no other.
    plain = wanted.params.grammar is not None or not (tools or form.thinks)
    if plain:
        return ReadyChat(prompt, params, False, lambda: None)
    end = service.llm.tokenizer.decode(prompt[-_PROMPT_END:], skip_special=False)
    thinking = params.grammar is None
    return ReadyChat(
        prompt,
        params,
        bool(tools) or form.shows_special,
        lambda: form.parser(tools, end, thinking=thinking),
    )


async def _without_oldest(service: Service, wanted: Conversation, form: AnswerFormat) -> list[int]:
    """The prompt of the newest turns that leave room for an answer; at least the last one.
    ContextExceeded if that does not fit either."""
    turns = await service.beside(lambda: _Turns.of(wanted.messages))
    limit = wanted.params.max_tokens or 1
    most = service.llm.context - min(limit, service.llm.context // _ROOM)
    # Turns that are left out: so many are too few, so many do.
    few, enough, prompt = 0, turns.count, None
    number, tried, step = turns.first_within(most * _CHARACTERS), 0, 1
    while enough - few > 1:
        number = min(max(number, few + 1), enough - 1)
        kept = replace(wanted, messages=turns.without(number), tool_choice="auto")
        text, _ = await _prepare(service, kept, form)
        ids = await service.encode(text, counted=True)
        fits = len(ids) <= most or (number == turns.count - 1 and len(ids) < service.llm.context)
        if fits:
            enough, prompt = number, ids
        else:
            few = number
        tried += 1
        if tried <= _ESTIMATES:
            number = turns.first_within(turns.sizes[number] * most // max(len(ids), 1))
        elif few and enough < turns.count:
            number = (few + enough) // 2
        elif step > _NEAR and not fits:
            # Then perhaps none does.
            number = turns.count - 1
        else:
            # Not far away, and what is rendered on the way has about the size of what fits.
            number, step = number + (-step if fits else step), 2 * step
    if prompt is None:
        # Says by how much.
        last = replace(wanted, messages=turns.without(turns.count - 1), tool_choice="auto")
        text, _ = await _prepare(service, last, form)
        return await service.encode(text)
    left_out = turns.starts[enough]
    note(f"the context is full: {left_out} of {len(turns.rest)} messages are left out, the oldest")
    return prompt


@dataclass(frozen=True)
class _Turns:
    """A conversation that begins with ``head`` and goes on with ``rest``, where a turn begins at
    each of ``starts``; ``sizes`` are the characters from there to the end, about."""

    head: Sequence[Mapping[str, Any]]
    rest: Sequence[Mapping[str, Any]]
    starts: Sequence[int]
    sizes: Sequence[int]

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]]) -> _Turns:
        head = [message for message in messages if message["role"] == "system"]
        rest = [message for message in messages if message["role"] != "system"]
        starts = [number for number, message in enumerate(rest) if message["role"] == "user"]
        each = [_MARKUP + len(message.get("content") or "") for message in rest]
        behind = list(accumulate(reversed(each)))[::-1]
        return cls(head, rest, starts, [behind[start] for start in starts])

    @property
    def count(self) -> int:
        return len(self.starts)

    def without(self, count: int) -> list[Mapping[str, Any]]:
        """The messages without so many turns, the oldest; all where there is no turn."""
        return [*self.head, *self.rest[self.starts[count] if self.starts else 0 :]]

    def first_within(self, characters: int) -> int:
        """The first turn from which on there are no more characters."""
        return bisect_left(self.sizes, -characters, key=neg)


async def count_tokens(service: Service, wanted: Conversation) -> int:
    """Tokens of a conversation's prompt."""
    form = answer_format(_template(service))
    wanted = _with_preset(service, wanted)
    text, _ = await _prepare(service, wanted, form)
    return len(await service.encode(text, counted=True))


async def rendered(service: Service, wanted: Conversation) -> str:
    """The text of a conversation's prompt."""
    wanted = _with_preset(service, wanted)
    return (await _prepare(service, wanted, answer_format(_template(service))))[0]


def _with_preset(service: Service, wanted: Conversation) -> Conversation:
    """``wanted`` with what the server says where it says nothing."""
    preset = service.preset
    messages, variables = preset.messages(wanted.messages), preset.variables(wanted.variables)
    return replace(wanted, messages=messages, variables=variables)


def _offered(wanted: Conversation) -> Sequence[Tool]:
    return () if wanted.tool_choice == "none" else wanted.tools


async def _prepare(
    service: Service, wanted: Conversation, form: AnswerFormat
) -> tuple[str, SamplingParams]:
    """The prompt's text, and the parameters with the grammar of a call that must come."""
    params = wanted.params
    source = _template(service)
    tools = _offered(wanted)
    if wanted.tool_choice == "required":
        if not tools:
            raise UsageError("a tool must be called, but there are no tools")
        params = await _with_call(service, wanted, form.calls)
    messages = await service.beside(lambda: _told(wanted, source, form))
    known = [tool.as_openai() for tool in tools] if tools and "tools" in source else None
    text = await service.chat_text(
        messages,
        tools=known,
        continue_final_message=wanted.continue_last,
        add_generation_prompt=wanted.begin_answer,
        variables=wanted.variables,
        ending="" if wanted.params.grammar is None else form.calls.before_a_grammar,
    )
    return text, params


def _told(wanted: Conversation, source: str, form: AnswerFormat) -> Sequence[Mapping[str, Any]]:
    """The messages as a chat template takes them, by what it knows of tools."""
    tools = _offered(wanted)
    if "tools" not in source:
        return tell_of_tools(wanted.messages, tools) if tools else in_words(wanted.messages)
    if "tool_calls" not in source:
        return with_calls_written(wanted.messages, form.calls)
    return form.calls.history(wanted.messages)


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

    def write() -> tuple[str, list[str]]:
        left_open = [path for called in tools for path in enforced(called.parameters)[1]]
        return form.grammar(tools, token_id), left_open

    try:
        source, left_open = await service.beside(write)
    except RecursionError:
        raise UsageError("the parameters of a tool are nested too deeply") from None
    compiler = service.grammars
    note_left_open(left_open)
    return replace(wanted.params, grammar=await service.compiled(lambda: compiler.lark(source)))
