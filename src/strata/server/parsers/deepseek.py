"""DeepSeek V3.1: ``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}``, in a section; V3 and R1 write
``function<｜tool▁sep｜>name`` and the arguments in a block of Markdown.

Formats: https://huggingface.co/deepseek-ai/DeepSeek-V3.1, .../DeepSeek-V3-0324 (chat templates)
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

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
START, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_KIND = "function"
_NAME = re.compile(r"[^\s<{`]*")


class DeepSeek(Marked):
    """See the module. ``fenced``: a grammar is of the older form; both are read. The section's own
    marks may be missing."""

    marks = (SECTION, START)

    def __init__(self, fenced: bool = False) -> None:
        self._fenced = fenced

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        if mark == SECTION:
            yield from source.space()
            if not (yield from source.take(START)):
                return False
        while True:
            yield from source.space()
            name = yield from source.run(_NAME)
            if not (yield from source.take(SEPARATOR)):
                return False
            if name == _KIND:
                name = (yield from source.run(_NAME)) or name
            yield from source.space()
            if (yield from source.take("```json")):
                yield from source.space()
            if name not in tools or not (yield from source.starts("{")):
                return False
            source.begin_call(name)
            yield from source.json_value(source.argue, END, SECTION_END)
            following = yield from source.until(END, SECTION_END, START, give=nowhere)
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
        separator = marked(SEPARATOR, token_id)
        end = f"{marked(END, token_id)} {marked(SECTION_END, token_id)}"
        if not self._fenced:
            return lark_alternatives(
                tools, lambda name: f"{start} {json.dumps(name)} {separator}", end
            )

        def before(name: str) -> str:
            return f"{start} {json.dumps(_KIND)} {separator} " + json.dumps(f"{name}\n```json\n")

        return lark_alternatives(tools, before, json.dumps("\n```") + f" {end}")
