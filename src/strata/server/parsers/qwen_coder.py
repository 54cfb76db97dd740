"""Qwen3-Coder, Qwen 3.5, Nemotron 3 and others: ``<function=name>`` around ``<parameter=name>``,
in ``<tool_call>``, which some of them leave out; Seed-OSS with a mark of its own around.

Format: https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct (chat template)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source, nowhere
from strata.server.parsers.tagged import Arguments, tagged_alternatives

START, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_NAME = re.compile(r"[^\s<>]*")


class QwenCoder(Marked):
    """See the module."""

    def __init__(self, start: str = START, end: str = END) -> None:
        self.marks = (start, FUNCTION)
        self.ends_thoughts = (start,)
        self._end = end

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        if mark != FUNCTION:
            yield from source.space()
            if not (yield from source.take(FUNCTION)):
                return False
        begun = False
        while True:
            name = yield from source.run(_NAME)
            if name not in tools or not (yield from source.take(">")):
                return begun
            begun = True
            if not (yield from self._arguments(source, tools[name])):
                return True
            yield from source.space()
            if not (yield from source.take(FUNCTION)):
                break
            source.try_call()
        yield from source.take(self._end)
        return True

    def _arguments(self, source: Source, tool: Tool) -> Reading[bool]:
        """Whether all of them came."""
        arguments = Arguments(source, tool)
        ends = (PARAMETER, FUNCTION_END, self._end)
        while (found := (yield from source.until(*ends, give=nowhere))) == PARAMETER:
            yield from source.take(PARAMETER)
            name = yield from source.run(_NAME)
            if not (yield from source.take(">")):
                continue
            yield from arguments.read(name, PARAMETER_END, newlines=True)
        if found is None:
            return False
        yield from source.take(FUNCTION_END)
        arguments.end()
        return True

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        start, end = marked(self.marks[0], token_id), marked(self._end, token_id)
        return tagged_alternatives(
            tools,
            lambda name: f"{start} {json.dumps(f'{chr(10)}{FUNCTION}{name}>{chr(10)}')}",
            lambda name, is_text: (f"{PARAMETER}{name}>\n", f"\n{PARAMETER_END}\n"),
            f"{json.dumps(FUNCTION_END + chr(10))} {end}",
        )
