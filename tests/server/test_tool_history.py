"""Past calls in prompts, as templates print them or in words."""

from __future__ import annotations

from typing import Any

import pytest

from strata.guard.templates import render
from strata.server.parsers import Tool, answer_format
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.lfm2 import Lfm2
from strata.server.parsers.plain import tell_of_tools, with_calls_written
from support.call_templates import TEMPLATES
from support.tool_answers import FORMATS, TOOLS, joined, read


def test_tools_in_words() -> None:
    tools = [Tool("add", "Adds.", {"type": "object"})]
    call = {"function": {"name": "add", "arguments": {}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    told = tell_of_tools(messages, tools)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"add"' in told[0]["content"]
    assert read(FORMATS["hermes"], [told[2]["content"]]) == [("add", {})]
    system = tell_of_tools([{"role": "system", "content": "Be kind."}, *messages], tools)
    assert system[0]["content"].startswith("Be kind.\n\n")
    assert len(system) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_calls_that_are_written_are_read_again(name: str) -> None:
    function = {"name": "add", "arguments": {"a": 1, "b": "it's \"\n", "c": [None, True, {}]}}
    message = {"role": "assistant", "content": "So", "tool_calls": [{"function": function}]}
    (written,) = with_calls_written([message], FORMATS[name].calls)
    assert "tool_calls" not in written
    if isinstance(FORMATS[name].calls, (Hermes, Lfm2)):
        assert read(FORMATS[name], [written["content"]]) == [
            "So",
            ("add", function["arguments"]),
        ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_again(name: str) -> None:
    form = answer_format(TEMPLATES[name])
    assert type(form.calls).__name__ == name
    arguments = {"a": -1, "b": "x 'y' é"}
    function = {"name": "add", "arguments": arguments}
    asked = {"role": "user", "content": "hi"}
    answer = {
        "role": "assistant",
        "reasoning_content": "hm",
        "tool_calls": [{"function": function}],
    }
    tools = [tool.as_openai() for tool in TOOLS]
    begun = {"messages": [asked], "tools": tools, "add_generation_prompt": True}
    prompt = render(TEMPLATES[name], begun)
    whole = render(TEMPLATES[name], {"messages": [asked, answer], "tools": tools})
    assert whole.startswith(prompt)
    parser = form.parser(TOOLS, prompt)
    found = joined([*parser.push(whole[len(prompt) :]), *parser.finish()])
    expected: list[Any] = [("add", arguments)] if name == "Llama3" else [["hm"], ("add", arguments)]
    assert found[: len(expected)] == expected
    # The token that ends a message.
    assert all(isinstance(rest, str) for rest in found[len(expected) :])


def test_history_is_as_templates_want_it() -> None:
    calls = [{"id": "call_12345", "function": {"name": n, "arguments": {}}} for n in ("a", "b")]
    calls[1]["id"] = "other"
    messages = [
        {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "other"},
        {"role": "tool", "content": "2", "tool_call_id": "call_12345"},
        {"role": "assistant", "content": "Done", "reasoning_content": "oh"},
    ]
    told = FORMATS["harmony"].calls.history(messages)
    assert [m.get("content") for m in told] == [None, "2", "", "1", "Done"]
    assert told[0]["reasoning_content"] == "hm\n\nSo"
    assert [len(m["tool_calls"]) for m in told if "tool_calls" in m] == [1, 1]
    told = FORMATS["llama3"].calls.history(messages)
    assert [m["content"] for m in told] == ["So", "2", "", "1", "Done"]
    short = FORMATS["mistral"].calls.history(messages)
    ids = [call["id"] for call in short[0]["tool_calls"]]
    assert ids == [short[2]["tool_call_id"], short[1]["tool_call_id"]]
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert FORMATS["mistral"].calls.history(short) == short
    assert FORMATS["kimi"].calls.history(messages) == messages
