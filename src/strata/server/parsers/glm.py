"""GLM 4.5 to 4.7: ``<tool_call>name`` with pairs of ``<arg_key>`` and ``<arg_value>``.

Format: https://huggingface.co/zai-org/GLM-4.5 (chat template)
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
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
_NAME = re.compile(r"[^\s<]*")


class Glm(Marked):
    """See the module."""

    marks = (START,)

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        yield from source.space()
        name = yield from source.run(_NAME)
        yield from source.space()
        if name not in tools or not (yield from source.starts(KEY, END)):
            return False
        arguments = Arguments(source, tools[name])
        while (found := (yield from source.until(KEY, END, give=nowhere))) == KEY:
            yield from source.take(KEY)
            parts: list[str] = []
            yield from source.until(KEY_END, END, give=parts.append)
            yield from source.take(KEY_END)
            yield from source.space()
            if (yield from source.take(VALUE)):
                yield from arguments.read("".join(parts).strip(), VALUE_END)
        if found is None:
            return True
        yield from source.take(END)
        arguments.end()
        return True

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        return tagged_alternatives(
            tools,
            lambda name: f"{marked(START, token_id)} {json.dumps(f'{name}{chr(10)}')}",
            lambda name, is_text: (
                f"{KEY}{name}{KEY_END}\n{VALUE}",
                f"{VALUE_END}\n",
            ),
            marked(END, token_id),
        )
