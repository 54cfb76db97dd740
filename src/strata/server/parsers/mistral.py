"""Mistral: ``[TOOL_CALLS]`` and a JSON list of calls; newer models write ``name[ARGS]{...}``.

Format: https://github.com/mistralai/mistral-common (instruct tokenizers, versions 2 to 13)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import lark_alternatives, mark
from strata.server.parsers.json_calls import read_calls
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source

START, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ID_LENGTH = 9
_NAME = re.compile(r"[\w.-]*")


class Mistral(Marked):
    """See the module."""

    marks = (START,)

    def history(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Templates take ids of nine letters and digits only: others are replaced."""
        out: list[Mapping[str, Any]] = []
        for message in messages:
            changed = dict(message)
            if changed.get("tool_calls"):
                changed["tool_calls"] = [
                    {**call, "id": _short(call.get("id"))} for call in changed["tool_calls"]
                ]
            if "tool_call_id" in changed or changed["role"] == "tool":
                changed["tool_call_id"] = _short(changed.get("tool_call_id"))
            out.append(changed)
        return out

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        yield from source.space()
        if (yield from source.starts("[")):
            return (yield from read_calls(source, tools))
        name = yield from source.run(_NAME)
        if name not in tools:
            return False
        id = None
        if (yield from source.take(ID)):
            id = yield from source.run(_NAME)
        yield from source.take(ARGUMENTS)
        yield from source.space()
        if not (yield from source.starts("{")):
            return False
        source.begin_call(name, id)
        yield from source.json_value(source.argue, START)
        source.end_call()
        return True

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        start, arguments = mark(START, token_id), token_id(ARGUMENTS)

        def before(name: str) -> str:
            if arguments is not None:
                return f"{start} {json.dumps(name)} <[{arguments}]>"
            opening = f'[{{"name": {json.dumps(name)}, "arguments": '
            return f"{start} {json.dumps(opening)}"

        return lark_alternatives(tools, before, '"}]"' if arguments is None else "")


def _short(id: str | None) -> str:
    text = id or ""
    if len(text) == _ID_LENGTH and text.isascii() and text.isalnum():
        return text
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]
