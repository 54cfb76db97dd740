"""Llama 3.1 and later: the whole answer is a JSON object with ``name`` and ``parameters``.

Several are divided by semicolons; ``<|python_tag|>`` may stand before them, or before a call of a
built-in tool, ``name.call(key="value")``.
Format: https://github.com/meta-llama/llama-models (prompt formats)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from strata.server.parsers.base import Reading, TokenId, Tool, ToolFormat, Tools
from strata.server.parsers.grammars import lark_alternatives
from strata.server.parsers.history import one_call_a_message
from strata.server.parsers.json_calls import read_calls
from strata.server.parsers.literals import read_python_arguments
from strata.server.parsers.source import Source

TAG = "<|python_tag|>"
_NAME = re.compile(r"[\w-]*")


class Llama3(ToolFormat):
    """See the module."""

    def history(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See ToolFormat."""
        return one_call_a_message(messages)

    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """See ToolFormat."""
        source.try_call()
        yield from source.space()
        tagged = yield from source.take(TAG)
        yield from source.space()
        if (yield from source.starts("{")):
            begun = yield from read_calls(source, tools)
        else:
            begun = bool(tagged) and (yield from _built_in(source, tools))
        source.no_call()
        if begun:
            yield from source.space()
        yield from source.until(give=source.say)

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""

        def before(name: str) -> str:
            return json.dumps(f'{{"name": {json.dumps(name)}, "parameters": ')

        return lark_alternatives(tools, before, '"}"')


def _built_in(source: Source, tools: Tools) -> Reading[bool]:
    name = yield from source.run(_NAME)
    if name not in tools or not (yield from source.take(".call(")):
        return False
    source.begin_call(name)
    if (yield from read_python_arguments(source)):
        source.end_call()
    return True
