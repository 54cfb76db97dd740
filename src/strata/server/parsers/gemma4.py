"""Gemma 4: ``<|tool_call>call:name{key:<|"|>text<|"|>,other:1}<tool_call|>``, and thoughts in
``<|channel>thought``, wherever they come.

Format: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from strata.server.parsers.base import Reading, TokenId, Tool, ToolFormat, Tools
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.literals import GEMMA, read_literal
from strata.server.parsers.source import Source, nowhere
from strata.server.parsers.tagged import kinds_of
from strata.server.parsers.thinking import Trimmed

START, END, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
RESPONSE = "<|tool_response>"
_CALL = "call:"
_NAME = re.compile(r"[\w.-]*")


class Gemma4(ToolFormat):
    """See the module. What stands behind ``<|tool_response>`` is not the model's to say."""

    has_thoughts = True

    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """See ToolFormat."""
        marks = (START, CHANNEL, CHANNEL_END, RESPONSE)
        while mark := (yield from source.until(*marks, give=source.say)):
            if mark == CHANNEL:
                yield from source.take(CHANNEL)
                yield from _thought(source)
            elif mark == START:
                source.try_call()
                yield from source.take(START)
                begun = yield from _call(source, tools)
                source.no_call()
                if begun:
                    yield from source.space()
            else:
                yield from source.take(mark)
                if mark == RESPONSE:
                    yield from source.until(START, CHANNEL, give=nowhere)

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        quote = marked(QUOTE, token_id)
        starts = []
        for tool in tools:
            properties = tool.parameters.get("properties")
            named = properties if isinstance(properties, Mapping) else {}
            needed = tool.parameters.get("required")
            parts: list[str] = []
            ordered = sorted(named, key=lambda n: not (isinstance(needed, list) and n in needed))
            for name in ordered:
                kinds = kinds_of(tool, name)
                kind = "string" if kinds == {"string"} else "value"
                part = json.dumps(f"{',' if parts else ''}{name}:") + f" {kind}"
                if not (isinstance(needed, list) and name in needed):
                    if not parts:
                        break
                    part = f"({part})?"
                parts.append(part)
            opening = json.dumps(f"{_CALL}{tool.name}{{")
            starts.append(
                f'{marked(START, token_id)} {opening} {" ".join(parts)} "}}" '
                f"{marked(END, token_id)}"
            )
        return "\n".join(
            [
                "start: " + "\n     | ".join(starts),
                f"string: {quote} /[^<]*/ {quote}",
                'value: string | number | "true" | "false" | "null" | list | object',
                r"number: /-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/",
                'list: "[" (value ("," value)*)? "]"',
                'object: "{" (pair ("," pair)*)? "}"',
                'pair: /[A-Za-z_][A-Za-z0-9_]*/ ":" value',
            ]
        )


def _thought(source: Source) -> Reading[None]:
    yield from source.take("thought")
    yield from source.space()
    thought = Trimmed(source.think)
    yield from source.until(CHANNEL_END, START, give=thought.add)
    yield from source.take(CHANNEL_END)
    yield from source.space()


def _call(source: Source, tools: Tools) -> Reading[bool]:
    yield from source.space()
    if not (yield from source.take(_CALL)):
        return False
    name = yield from source.run(_NAME)
    if name not in tools or not (yield from source.starts("{")):
        return False
    source.begin_call(name)
    yield from read_literal(source, GEMMA, source.argue)
    if (yield from source.until(END, RESPONSE, give=nowhere)) is None:
        return True
    yield from source.take(END)
    source.end_call()
    return True
