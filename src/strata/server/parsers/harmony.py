"""Harmony (gpt-oss): an answer is a row of messages, each on a channel: ``analysis`` is thought,
``commentary`` to a function is a call, ``final`` and what else is said is text.

Format: https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from strata.server.parsers.base import Reading, TokenId, Tool, ToolFormat, Tools
from strata.server.parsers.grammars import lark_alternatives
from strata.server.parsers.grammars import mark as marked
from strata.server.parsers.history import one_call_a_message
from strata.server.parsers.source import Source, nowhere

START, CHANNEL, CONSTRAIN = "<|start|>", "<|channel|>", "<|constrain|>"
MESSAGE, END, CALL, RETURN = "<|message|>", "<|end|>", "<|call|>", "<|return|>"
_ENDS = (END, CALL, RETURN, START)
_HEADS = (CHANNEL, MESSAGE, CONSTRAIN, "to=")
_ROLE = re.compile(r"\w*")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_ON = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


class Harmony(ToolFormat):
    """See the module. What is sent to no tool of the request is a thought: nobody answers it."""

    has_thoughts = True
    before_a_grammar = f"{CHANNEL}final{MESSAGE}"

    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """See ToolFormat."""
        while not source.exhausted:
            space = yield from source.space()
            end = yield from source.take(*_ENDS)
            if end == START:
                yield from source.run(_ROLE)
            elif end is None and (yield from source.starts(*_HEADS)):
                head: list[str] = []
                if (yield from source.until(MESSAGE, *_ENDS, give=head.append)) == MESSAGE:
                    yield from source.take(MESSAGE)
                    yield from _message("".join(head), source, tools)
            elif end is None:
                source.say(space)
                yield from source.until(CHANNEL, *_ENDS, give=source.say)

    def history(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """See ToolFormat. What was said before a call is thought: templates take one of the two."""
        return [_thinking_only(message) for message in one_call_a_message(messages)]

    def opening(self, prompt: str) -> str:
        """See ToolFormat."""
        _, start, begun = prompt.rpartition(f"{START}assistant")
        return begun if start else self.before_a_grammar

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """See ToolFormat."""
        channel, message = marked(CHANNEL, token_id), marked(MESSAGE, token_id)
        constrain = marked(CONSTRAIN, token_id)

        def before(name: str) -> str:
            to = json.dumps(f"commentary to=functions.{name} ")
            return f'{channel} {to} {constrain} "json" {message}'

        return lark_alternatives(tools, before, "")


def _message(head: str, source: Source, tools: Tools) -> Reading[None]:
    channel, recipient = _ON.search(head), _RECIPIENT.search(head)
    if recipient is not None and recipient[1] in tools:
        source.begin_call(recipient[1])
        rest = source.argue
        yield from source.space()
        if (yield from source.starts("{")):
            if (yield from source.json_value(source.argue, *_ENDS)):
                source.end_call()
            rest = nowhere
        if (yield from source.until(*_ENDS, give=rest)) is not None:
            source.end_call()
    else:
        elsewhere = recipient is not None and recipient[1] != "assistant"
        thought = elsewhere or (channel is not None and channel[1] == "analysis")
        yield from source.until(*_ENDS, give=source.think if thought else source.say)


def _thinking_only(message: Mapping[str, Any]) -> Mapping[str, Any]:
    said = [message.get("reasoning_content"), message.get("content")]
    thought = "\n\n".join(text for text in said if text)
    if not message.get("tool_calls") or not thought:
        return message
    return {**message, "content": None, "reasoning_content": thought}
