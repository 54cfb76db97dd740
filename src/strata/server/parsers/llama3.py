"""Llama 3.1 and later: the whole answer is a JSON object with ``name`` and ``parameters``.

Several are divided by semicolons; ``<|python_tag|>`` may stand before them.
Format: https://github.com/meta-llama/llama-models (prompt formats)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from strata.server.parsers.base import (
    Piece,
    TokenId,
    Tool,
    ToolCall,
    ToolParser,
    lark_alternatives,
    read_call,
)

TAG = "<|python_tag|>"


class Llama3:
    """See the module."""

    def parser(self, names: Sequence[str]) -> ToolParser:
        """See ToolFormat."""
        return _Parser(names)

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            return json.dumps(f'{{"name": {json.dumps(name)}, "parameters": ')

        return lark_alternatives(tools, before, '"}"')


class _Parser:
    """Holds an answer that begins like a call until its end; any other is text at once."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> list[Piece]:
        """See ToolParser."""
        if self._is_text:
            return [text] if text else []
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun[0] == "{" or begun.startswith(TAG) or TAG.startswith(begun):
            return []
        self._is_text = True
        held, self._held = self._held, ""
        return [held]

    def finish(self) -> list[Piece]:
        """See ToolParser."""
        held, self._held = self._held, ""
        calls = self._read(held.strip().removeprefix(TAG))
        if calls is not None:
            return list(calls)
        return [held] if held else []

    def _read(self, text: str) -> list[ToolCall] | None:
        calls = []
        rest = text.strip()
        while rest:
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return None
            call = read_call(value, self._names, ("parameters", "arguments"))
            if call is None:
                return None
            calls.append(call)
            rest = rest[end:].lstrip().removeprefix(";").lstrip()
        return calls or None
