"""Mistral: ``[TOOL_CALLS]`` and a JSON list of calls; newer models write ``name[ARGS]{...}``.

Format: https://github.com/mistralai/mistral-common (instruct tokenizers, versions 2 to 13)
"""

from __future__ import annotations

import json
import re
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

START, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_NAME = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*")


class Mistral:
    """See the module."""

    def parser(self, names: Sequence[str]) -> ToolParser:
        """See ToolFormat."""
        return Markers(START, None, lambda text: _read(text, names))

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        start, arguments = token_id(START), token_id(ARGUMENTS)
        marker = json.dumps(START) if start is None else f"<[{start}]>"

        def before(name: str) -> str:
            if arguments is not None:
                return f"{marker} {json.dumps(name)} <[{arguments}]>"
            opening = f'[{{"name": {json.dumps(name)}, "arguments": '
            return f"{marker} {json.dumps(opening)}"

        return lark_alternatives(tools, before, '"}]"' if arguments is None else "")


def _read(text: str, names: Sequence[str]) -> list[ToolCall] | None:
    if text.lstrip().startswith("["):
        value = parse_json(text)
        if not isinstance(value, list):
            return None
        calls = [read_call(item, names, ("arguments", "parameters")) for item in value]
        found = [call for call in calls if call is not None]
        return found if found and len(found) == len(calls) else None
    found = []
    rest = text.strip()
    while rest:
        match = _NAME.match(rest)
        if match is None or match[1] not in names:
            return None
        try:
            value, end = json.JSONDecoder().raw_decode(rest, match.end())
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        found.append(ToolCall(match[1], value))
        rest = rest[end:].strip()
    return found or None
