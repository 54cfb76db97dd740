"""``<invoke name="...">`` around ``<parameter name="...">``: MiniMax M2, and DeepSeek V3.2 and V4
with a mark of theirs in every tag.

Formats: https://huggingface.co/MiniMaxAI/MiniMax-M2 (tool calling guide),
https://huggingface.co/deepseek-ai/DeepSeek-V3.2 (encoding)
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source, nowhere
from strata.server.parsers.tagged import Arguments, tagged_alternatives

DSML = "｜DSML｜"


class Invoke(Marked):
    """See the module. Calls stand between ``<section>`` and its end; ``sign`` is in every tag, and
    then a parameter says whether it is a string."""

    def __init__(self, section: str, sign: str = "") -> None:
        self.marks = (f"<{sign}{section}>",)
        self._end = f"</{sign}{section}>"
        self._sign = sign
        self._invoke, self._invoke_end = f'<{sign}invoke name="', f"</{sign}invoke>"
        self._parameter, self._parameter_end = f'<{sign}parameter name="', f"</{sign}parameter>"

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        begun = False
        while True:
            yield from source.space()
            if not (yield from source.take(self._invoke)):
                return begun
            name, _ = yield from self._opening(source)
            if name not in tools:
                return begun
            begun = True
            if not (yield from self._arguments(source, tools[name])):
                return True
            yield from source.space()
            if (yield from source.take(self._end)) or not (yield from source.starts(self._invoke)):
                return True
            source.try_call()

    def _arguments(self, source: Source, tool: Tool) -> Reading[bool]:
        """Whether all of them came."""
        arguments = Arguments(source, tool)
        ends = (self._parameter, self._invoke_end, self._end)
        while (found := (yield from source.until(*ends, give=nowhere))) == self._parameter:
            yield from source.take(found)
            name, rest = yield from self._opening(source)
            is_text = 'string="true"' in rest if self._sign else None
            yield from arguments.read(name, self._parameter_end, is_text=is_text)
        if found is None:
            return False
        yield from source.take(self._invoke_end)
        arguments.end()
        return True

    def _opening(self, source: Source) -> Reading[tuple[str, str]]:
        """The rest of an opening tag: the name, and what else it says."""
        name: list[str] = []
        yield from source.until('"', ">", "\n", give=name.append)
        rest: list[str] = []
        yield from source.until(">", "\n", give=rest.append)
        yield from source.take(">")
        return "".join(name), "".join(rest)

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""

        def argument(name: str, is_text: bool) -> tuple[str, str]:
            kind = f' string="{json.dumps(is_text)}"' if self._sign else ""
            return f'{self._parameter}{name}"{kind}>', f"{self._parameter_end}\n"

        start, end = marked(self.marks[0], token_id), marked(self._end, token_id)
        return tagged_alternatives(
            tools,
            lambda name: start + " " + json.dumps(f'\n{self._invoke}{name}">\n'),
            argument,
            f"{json.dumps(self._invoke_end + chr(10))} {end}",
        )
