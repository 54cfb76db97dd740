"""JSON objects between marks: ``<tool_call>`` of Hermes, Qwen, Granite 4 and many others; with
marks of their own Granite 3, Phi 4, Nemotron and Command R (a list), and MiniMax M1.

Format: https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import lark_alternatives, mark
from strata.server.parsers.json_calls import read_calls
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source

START, END = "<tool_call>", "</tool_call>"


class Hermes(Marked):
    """See the module. ``listed``: the objects are in a list. Without an ``end`` calls go on to the
    end of the answer."""

    def __init__(self, start: str = START, end: str | None = END, listed: bool = False) -> None:
        self.marks = (start,)
        self._end = end
        self._listed = listed

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        ends = () if self._end is None else (self._end,)
        yield from source.space()
        if not (yield from read_calls(source, tools, *ends)):
            return False
        yield from source.space()
        yield from source.take(*ends)
        return True

    def write(self, name: str, arguments: Any) -> str:
        """See ToolFormat."""
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        inside = f"[{call}]" if self._listed else f"\n{call}\n"
        return self.marks[0] + inside + (self._end or "")

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        start = mark(self.marks[0], token_id)
        end = "" if self._end is None else mark(self._end, token_id)
        opening, closing = ("[", "]") if self._listed else ("\n", "\n")

        def before(name: str) -> str:
            return f"{start} " + json.dumps(f'{opening}{{"name": {json.dumps(name)}, "arguments": ')

        return lark_alternatives(tools, before, f"{json.dumps('}' + closing)} {end}")
