"""Hermes, Qwen and many others: ``<tool_call>`` around a JSON object, as often as there are calls.

Format: https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from strata.server.parsers.base import (
    Markers,
    TokenId,
    Tool,
    ToolCall,
    ToolParser,
    lark_alternatives,
    parse_json,
    read_call,
)

START, END = "<tool_call>", "</tool_call>"


class Hermes:
    """See the module."""

    def parser(self, names: Sequence[str]) -> ToolParser:
        """See ToolFormat."""

        def read(text: str) -> list[ToolCall] | None:
            call = read_call(parse_json(text), names, ("arguments", "parameters"))
            return None if call is None else [call]

        return Markers(START, END, read)

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            return json.dumps(f'{START}\n{{"name": {json.dumps(name)}, "arguments": ')

        return lark_alternatives(tools, before, json.dumps(f"}}\n{END}"))
