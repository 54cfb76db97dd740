"""Chat templates of published models: whether Strata renders them as transformers does, which
format of answers it reads from each, and whether it reads again what the template writes of a call.

`python bench/chat_templates.py --templates DIR [--json out.json]` takes every *.jinja of a folder,
for example models/templates of llama.cpp's sources. Every template gets every chat, with tools and
without, with and without the beginning of an answer, and with thinking on, off, or not spoken of.
Where a template refuses a chat, transformers' error has to be Strata's. Wants transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from machine import describe
from strata.server.conversation import thinking_variables
from strata.server.parsers import AnswerFormat, Tool, ToolCall, answer_format
from strata.server.parsers.plain import tell_of_tools, with_calls_written
from strata.text import ChatTemplate, ChatTemplateError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Which"},
        "days": {"type": "integer"},
        "parts": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}
TOOLS = [
    Tool("weather", "The weather in a city — now", PARAMETERS),
    Tool("clock", "The time", {"type": "object", "properties": {}}),
]
ARGUMENTS = {"city": 'Zürich "x"', "days": 2, "parts": ["sky", "wind"]}


def call(name: str, id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def thinking(text: str) -> dict[str, str]:
    """Under both names: what templates read, and what Strata makes of either."""
    return {"reasoning_content": text, "thinking": text}


USER = {"role": "user", "content": "Weather in Zürich?"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("weather", "abcdef123", ARGUMENTS)],
}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": "grey"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "short": [USER],
    "turns": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Who are you? 你好"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": " Really?"},
    ],
    "thoughts": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", **thinking("Two and two.")},
        {"role": "user", "content": "Sure?"},
    ],
    "called": [USER, CALLED],
    "answered": [USER, CALLED, RESULT],
    "two calls": [
        USER,
        {
            **CALLED,
            **thinking("Both."),
            "tool_calls": [*CALLED["tool_calls"], call("clock", "abcdef124", {})],
        },
        RESULT,
        {**RESULT, "tool_call_id": "abcdef124", "name": "clock", "content": "12:00"},
        {"role": "assistant", "content": "Grey, at noon."},
        {"role": "user", "content": "Thanks."},
    ],
    "said and called": [USER, {**CALLED, "content": "I look."}, RESULT],
}
THINKING: list[Any] = [None, True, False, "low", "high"]


def compare(source: str) -> dict[str, Any]:
    """How often a template was rendered alike, refused alike, or neither."""
    ours = ChatTemplate(source, SPECIAL)
    figures: dict[str, Any] = {"same": 0, "refused alike": 0, "different": []}
    tools = [tool.as_openai() for tool in TOOLS]
    for chat, given, add, wanted in product(CHATS, (None, tools), (True, False), THINKING):
        options = {"add_generation_prompt": add, **thinking_variables(wanted)}
        expected = failure = None
        try:
            (expected,), _ = render_jinja_template(
                [CHATS[chat]], given, None, source, **options, **SPECIAL
            )
        except Exception as error:
            # jinja2's own errors are those of templates; Python's have a name in ours.
            alone = isinstance(error, TemplateError)
            failure = str(error) if alone else f"{type(error).__name__}: {error}"
        try:
            found = ours.render(CHATS[chat], tools=given, **options)
        except ChatTemplateError as error:
            refused = failure is not None and failure[:300] in str(error)
            figures["refused alike"] += refused
            if not refused:
                figures["different"].append([chat, bool(given), add, wanted, str(error)])
            continue
        if found == expected:
            figures["same"] += 1
        else:
            figures["different"].append([chat, bool(given), add, wanted, failure or "text"])
    return figures


def again(source: str, form: AnswerFormat) -> str:
    """Whether the call of a past answer, as the prompt has it, is the call that is read from it."""
    ours = ChatTemplate(source, SPECIAL)
    messages: Any = [USER, CALLED]
    tools: Any = [tool.as_openai() for tool in TOOLS]
    if "tools" not in source:
        messages, tools = tell_of_tools(messages, TOOLS), None
    elif "tool_calls" not in source:
        messages = with_calls_written(messages, form.calls)
    else:
        messages = form.calls.history(messages)
    try:
        prompt = ours.render(messages[:-1], tools=tools)
        bare = ours.render(messages[:-1], tools=tools, add_generation_prompt=False)
        whole = ours.render(messages, tools=tools, add_generation_prompt=False)
    except ChatTemplateError as error:
        return f"refused: {error}"
    # What opens an answer is not always what stands before a past one.
    start = prompt if whole.startswith(prompt) else bare
    if not whole.startswith(start):
        return "the past is written anew"
    parser = form.parser(TOOLS, start, thinking=start == prompt)
    pieces = [*parser.push(whole[len(start) :]), *parser.finish()]
    calls = [(piece.name, piece.parsed) for piece in pieces if isinstance(piece, ToolCall)]
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return "the same" if calls == [("weather", ARGUMENTS)] else f"other: {calls} {text}"[:200]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    templates = {}
    for path in sorted(options.templates.glob("*.jinja")):
        source = path.read_text()
        form = answer_format(source)
        figures = {
            "calls": type(form.calls).__name__,
            "thinks": form.thinks,
            **compare(source),
            "call read again": again(source, form),
        }
        templates[path.stem] = figures
        different = len(figures["different"])
        print(
            f"{path.stem:45} {figures['calls']:10} same {figures['same']:3} "
            f"refused {figures['refused alike']:3} different {different:3}  "
            f"{figures['call read again'][:90]}",
            flush=True,
        )
    if options.json:
        result = {"machine": describe(), "templates": templates}
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    sys.exit(any(figures["different"] for figures in templates.values()))


if __name__ == "__main__":
    main()
