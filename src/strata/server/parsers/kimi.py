"""Kimi K2: ``<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}``, in a section.

What stands for the name is the call's id, and has to come back with its result.
Format: https://huggingface.co/moonshotai/Kimi-K2-Instruct (tool call guidance)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import lark_alternatives
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source, nowhere

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
START, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"[^\s<]*")
_NUMBER = re.compile(r":\d+$")


class Kimi(Marked):
    """See the module. The section's own marks may be missing."""

    marks = (SECTION, START)
    ends_thoughts = marks

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        if mark == SECTION:
            yield from source.space()
            if not (yield from source.take(START)):
                return False
        while True:
            yield from source.space()
            id = yield from source.run(_ID)
            name = _NUMBER.sub("", id).removeprefix("functions.")
            yield from source.space()
            if name not in tools or not (yield from source.take(ARGUMENTS)):
                return False
            source.begin_call(name, id)
            yield from source.space()
            rest = source.argue
            if (yield from source.starts("{")):
                yield from source.json_value(source.argue, END, SECTION_END)
                rest = nowhere
            following = yield from source.until(END, SECTION_END, START, give=rest)
            if following is None:
                return True
            source.end_call()
            if following == END:
                yield from source.take(END)
                yield from source.space()
            if (yield from source.take(SECTION_END)) or not (yield from source.take(START)):
                return True
            source.try_call()

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        start = f"{marked(SECTION, token_id)} {marked(START, token_id)}"
        end = f"{marked(END, token_id)} {marked(SECTION_END, token_id)}"

        def before(name: str) -> str:
            return f"{start} {json.dumps(f'functions.{name}:0')} {marked(ARGUMENTS, token_id)}"

        return lark_alternatives(tools, before, end)
