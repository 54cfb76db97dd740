"""Tools for models whose chat template knows none: told in words, called in Hermes's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from strata.giving_way import give_way
from strata.server.parsers.base import Tool, ToolFormat
from strata.server.parsers.hermes import END, START

_INTRODUCTION = f"""\
You can call functions. To call one, answer with
{START}
{{"name": <name of the function>, "arguments": <object with its arguments>}}
{END}
and nothing else; the result then comes between <tool_response> and </tool_response>.
The functions, one JSON object a line:
"""


def tell_of_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """``messages`` with the tools in the system message, and calls and results as plain text."""
    listing = "\n".join(json.dumps(tool.as_openai()["function"]) for tool in tools)
    told = _INTRODUCTION + listing
    out = in_words(messages)
    if out and out[0]["role"] == "system":
        out[0]["content"] = f"{out[0]['content']}\n\n{told}"
    else:
        out.insert(0, {"role": "system", "content": told})
    return out


def in_words(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` with calls and results as plain text."""
    out = []
    for message in messages:
        called = message["role"] == "tool" or message.get("tool_calls")
        out.append(_in_words(message) if called else dict(message))
        give_way()
    return out


def with_calls_written(
    messages: Sequence[Mapping[str, Any]], form: ToolFormat
) -> list[dict[str, Any]]:
    """``messages`` with calls as text in the markup of ``form``, for a chat template that prints
    no others."""
    out = [dict(message) for message in messages]
    for message in out:
        calls = [call["function"] for call in message.pop("tool_calls", None) or ()]
        if calls:
            written = "".join(form.write(call["name"], call["arguments"]) for call in calls)
            message["content"] = (message.get("content") or "") + written
    return out


def _in_words(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = [
        f"{START}\n{json.dumps(call['function'])}\n{END}"
        for call in message.get("tool_calls") or ()
    ]
    return {
        "role": message["role"],
        "content": "\n".join([*([content] if content else []), *calls]),
    }
