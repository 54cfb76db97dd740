"""Answers: what in them is thought, text and call, and how a model is told of tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from strata.records import dataclass
from strata.server.parsers.base import (
    CallBegin,
    CallDelta,
    Parser,
    Piece,
    Reading,
    Thought,
    Tool,
    ToolCall,
    ToolFormat,
)
from strata.server.parsers.deepseek import DeepSeek
from strata.server.parsers.gemma4 import Gemma4
from strata.server.parsers.glm import Glm
from strata.server.parsers.harmony import Harmony
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.invoke import DSML, Invoke
from strata.server.parsers.kimi import Kimi
from strata.server.parsers.lfm2 import Lfm2
from strata.server.parsers.llama3 import Llama3
from strata.server.parsers.mistral import Mistral
from strata.server.parsers.qwen_coder import QwenCoder
from strata.server.parsers.source import Source, SourceParser
from strata.server.parsers.thinking import Thoughts, thoughts_of

__all__ = [
    "AnswerFormat",
    "CallBegin",
    "CallDelta",
    "Parser",
    "Piece",
    "Thought",
    "Tool",
    "ToolCall",
    "ToolFormat",
    "answer_format",
]

_FORMATS: tuple[tuple[tuple[str, ...], Callable[[], ToolFormat]], ...] = (
    (("<|channel|>", "<|message|>"), Harmony),
    (("<|tool_call>call:",), Gemma4),
    ((DSML, "function_calls"), lambda: Invoke("function_calls", DSML)),
    ((DSML, "tool_calls"), lambda: Invoke("tool_calls", DSML)),
    (("<minimax:tool_call>",), lambda: Invoke("minimax:tool_call")),
    (("<｜tool▁call▁begin｜>", "```json"), lambda: DeepSeek(fenced=True)),
    (("<｜tool▁call▁begin｜>",), DeepSeek),
    (("<|tool_call_begin|>",), Kimi),
    (("<|tool_call_start|>",), Lfm2),
    (("<|tool_list_start|>",), Lfm2),
    (("List of tools: [",), Lfm2),
    (("[TOOL_CALLS]",), Mistral),
    (("<seed:tool_call>",), lambda: QwenCoder("<seed:tool_call>", "</seed:tool_call>")),
    (("<function=", "<parameter="), QwenCoder),
    (("<arg_key>",), Glm),
    (("<|tool_call|>", "<|/tool_call|>"), lambda: Hermes("<|tool_call|>", "<|/tool_call|>", True)),
    (("<|tool_call|>",), lambda: Hermes("<|tool_call|>", None, True)),
    (
        ("<|START_ACTION|>", "<|END_ACTION|>"),
        lambda: Hermes("<|START_ACTION|>", "<|END_ACTION|>", True),
    ),
    (("<TOOLCALL>",), lambda: Hermes("<TOOLCALL>", "</TOOLCALL>", True)),
    (("<tool_calls>",), lambda: Hermes("<tool_calls>", "</tool_calls>")),
    (("<tool_call>",), Hermes),
    (("<|python_tag|>",), Llama3),
    (('"parameters"',), Llama3),
)
"""What a chat template's text has, and the format that it teaches; the first row that fits."""


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes its answers: its ``calls``, and the ``thoughts`` that come before, where
    those are not a part of the format of calls."""

    calls: ToolFormat
    thoughts: Thoughts | None

    @property
    def thinks(self) -> bool:
        """Whether the model can think before it answers."""
        return self.thoughts is not None or self.calls.has_thoughts

    @property
    def shows_special(self) -> bool:
        """Whether special tokens have to be seen even where no tool can be called."""
        thoughts = self.thoughts
        return self.calls.has_thoughts or (
            thoughts is not None and thoughts.start.startswith(("[", "<|"))
        )

    def parser(self, tools: Sequence[Tool], prompt: str = "", *, thinking: bool = True) -> Parser:
        """For an answer in which ``tools`` can be called, to a prompt that ends so. Without
        ``thinking`` nothing is thought before it."""
        thoughts = self.thoughts if thinking else None
        named = {tool.name: tool for tool in tools}

        def read(source: Source) -> Reading[None]:
            if thoughts is not None:
                yield from thoughts.read(source)
            if named or self.calls.has_thoughts:
                yield from self.calls.read(source, named)
            else:
                yield from source.until(give=source.say)

        opening = self.calls if thoughts is None else thoughts
        return SourceParser(read, opening.opening(prompt))


def answer_format(template: str) -> AnswerFormat:
    """The format that a chat template's text teaches; of calls Hermes's if it knows no tools."""
    make = next((make for marks, make in _FORMATS if all(m in template for m in marks)), Hermes)
    calls = make()
    if "tools" not in template and not calls.has_thoughts:
        # Told of them in words, a model is told of Hermes's format.
        calls = Hermes()
    thoughts = None if calls.has_thoughts else thoughts_of(template, calls.ends_thoughts)
    return AnswerFormat(calls, thoughts)
