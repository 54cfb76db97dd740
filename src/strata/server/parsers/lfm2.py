"""LFM2: calls as Python writes them, ``<|tool_call_start|>[name(key="value")]<|tool_call_end|>``;
or the same as JSON, if the prompt asks for that.

Format: https://huggingface.co/LiquidAI/LFM2-1.2B (tool use)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from strata.server.parsers.base import Reading, TokenId, Tool, Tools
from strata.server.parsers.grammars import json_rule
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.json_calls import read_calls
from strata.server.parsers.literals import read_python_arguments
from strata.server.parsers.marked import Marked
from strata.server.parsers.source import Source, nowhere

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
_NAME = re.compile(r"[\w.-]*")


class Lfm2(Marked):
    """See the module."""

    marks = (START,)

    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """See Marked."""
        begun = False
        yield from source.space()
        yield from source.take("[")
        while True:
            yield from source.space()
            if (yield from source.starts("{")):
                begun = (yield from read_calls(source, tools, END)) or begun
                break
            name = yield from source.run(_NAME)
            if name not in tools or not (yield from source.take("(")):
                return begun
            source.begin_call(name)
            begun = True
            complete = yield from read_python_arguments(source)
            if not complete and (yield from source.until(END, give=nowhere)) is None:
                return True
            source.end_call()
            yield from source.space()
            if not (yield from source.take(",")):
                break
            source.try_call()
        if begun:
            yield from source.take("]")
            yield from source.space()
            yield from source.take(END)
        return begun

    def write(self, name: str, arguments: Any) -> str:
        """See ToolFormat."""
        pairs = arguments.items() if isinstance(arguments, Mapping) else ()
        inside = ", ".join(f"{key}={value!r}" for key, value in pairs)
        return f"{START}[{name}({inside})]{END}"

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        rules, starts = [], []
        for number, tool in enumerate(tools):
            properties = tool.parameters.get("properties")
            named = properties if isinstance(properties, Mapping) else {}
            needed = tool.parameters.get("required")
            required = [n for n in named if isinstance(needed, list) and n in needed]
            others = [n for n in named if n not in required]
            shared = {k: v for k, v in tool.parameters.items() if k in ("$defs", "definitions")}
            values: list[str] = []
            for name in [*required, *others]:
                schema = named[name] if isinstance(named[name], Mapping) else {}
                rules.append(f"value_{number}_{len(values)}: {json_rule({**schema, **shared})}")
                opening = f"{', ' if values else ''}{name}="
                values.append(f"{json.dumps(opening)} value_{number}_{len(values)}")
            # The first has no comma in front: without it there are no others.
            sure = len(required) or min(len(values), 1)
            given = " ".join([*values[:sure], *(f"({value})?" for value in values[sure:])])
            if values and not required:
                given = f"({given})?"
            opening = json.dumps(f"[{tool.name}(")
            starts.append(
                f'{marked(START, token_id)} {opening} {given} ")]" {marked(END, token_id)}'
            )
        return "start: " + "\n     | ".join(starts) + "\n" + "\n".join(rules)
