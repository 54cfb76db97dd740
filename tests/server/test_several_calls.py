"""Several calls in one answer through every protocol, one where only one is wanted, and choices
among the tools.

What the model says is scripted by a grammar, as in test_tool_use.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from support.running import NAMES, Running

openai = pytest.importorskip("openai", reason="the package openai is not installed")
anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")
ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")

Say = Callable[[str, str], None]
MESSAGES: Any = [{"role": "user", "content": "Add one and two."}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
}
NAMED = ("add", "sub")
FUNCTIONS: Any = [{"name": name, "parameters": SCHEMA} for name in NAMED]
TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLS = [("add", {"a": 1, "b": "x"}), ("sub", {"a": 2}), ("add", {"a": 3})]
SCRIPT = "So" + "\n".join(
    f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    for name, arguments in CALLS
)
Found = tuple[str, list[tuple[str, str, Any]], str]
"""The text, each call with its id, and why the answer ended."""


def from_openai(server: Running, stream: bool, parallel: bool) -> Found:
    more: Any = {} if parallel else {"parallel_tool_calls": False}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "messages": MESSAGES, "tools": TOOLS, "max_tokens": 200}
        if not stream:
            (choice,) = client.chat.completions.create(**asked, **more).choices
            message = choice.message
        else:
            with client.chat.completions.stream(**asked, **more) as events:
                for event in events:
                    if event.type == "tool_calls.function.arguments.done":
                        assert event.name == CALLS[event.index][0]
                        assert json.loads(event.arguments) == CALLS[event.index][1]
                (choice,) = events.get_final_completion().choices
            message = choice.message
    calls = [
        (call.id, call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls
    ]
    return message.content, calls, choice.finish_reason


def from_responses(server: Running, stream: bool, parallel: bool) -> Found:
    more: Any = {} if parallel else {"parallel_tool_calls": False}
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "input": MESSAGES, "tools": tools}
        if stream:
            with client.responses.stream(**asked, **more) as events:
                told = [
                    event.item.call_id
                    for event in events
                    if event.type == "response.output_item.done"
                    and event.item.type == "function_call"
                ]
                found = events.get_final_response()
        else:
            found = client.responses.create(**asked, **more)
    assert found.parallel_tool_calls == parallel
    calls = [
        (item.call_id, item.name, json.loads(item.arguments))
        for item in found.output
        if item.type == "function_call"
    ]
    assert not stream or told == [id for id, _, _ in calls]
    return found.output_text, calls, found.status


def from_anthropic(server: Running, stream: bool, parallel: bool) -> Found:
    more: Any = {} if parallel else {"disable_parallel_tool_use": True}
    tools = [{"type": "custom", "name": name, "input_schema": SCHEMA} for name in NAMED]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "messages": MESSAGES, "tools": tools, "max_tokens": 200}
        asked["tool_choice"] = {"type": "auto", **more}
        if stream:
            with client.messages.stream(**asked) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**asked)
    text = "".join(block.text for block in answer.content if block.type == "text")
    calls = [(b.id, b.name, b.input) for b in answer.content if b.type == "tool_use"]
    return text, calls, answer.stop_reason


def from_ollama(server: Running, stream: bool, parallel: bool) -> Found:
    answer = ollama.Client(host=server.url).chat(NAMES[0], MESSAGES, tools=TOOLS, stream=stream)
    parts = list(answer) if stream else [answer]
    calls = [
        (str(number), call.function.name, dict(call.function.arguments))
        for number, call in enumerate(
            call for part in parts for call in part.message.tool_calls or ()
        )
    ]
    return "".join(part.message.content or "" for part in parts), calls, parts[-1].done_reason


PROTOCOLS: dict[str, tuple[Callable[[Running, bool, bool], Found], str]] = {
    "openai": (from_openai, "tool_calls"),
    "responses": (from_responses, "completed"),
    "anthropic": (from_anthropic, "tool_use"),
    "ollama": (from_ollama, "stop"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_several_calls(server: Running, say: Say, protocol: str, stream: bool) -> None:
    say("<tool_call>", SCRIPT)
    ask, end = PROTOCOLS[protocol]
    text, calls, reason = ask(server, stream, True)
    assert (text.strip(), reason) == ("So", end)
    assert [(name, arguments) for _, name, arguments in calls] == CALLS
    assert len({id for id, _, _ in calls}) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["openai", "responses", "anthropic"])
def test_one_call_where_no_more_is_wanted(
    server: Running, say: Say, protocol: str, stream: bool
) -> None:
    say("<tool_call>", SCRIPT)
    ask, end = PROTOCOLS[protocol]
    text, calls, reason = ask(server, stream, False)
    assert (text.strip(), reason) == ("So", end)
    assert [(name, arguments) for _, name, arguments in calls] == CALLS[:1]


def asked_of(path: str) -> dict[str, Any]:
    """A request with both tools."""
    if path.endswith("responses"):
        tools = [{"type": "function", **function} for function in FUNCTIONS]
        return {"input": MESSAGES, "tools": tools, "max_output_tokens": 60, "temperature": 0}
    return {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 60, "temperature": 0}


def choice_of(path: str, mode: str, name: str) -> dict[str, Any]:
    """Only the tool of this name may be called, or must be."""
    if path.endswith("responses"):
        tools = [{"type": "function", "name": name}]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}
    tools = [{"type": "function", "function": {"name": name}}]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_only_allowed_tools_are_called(server: Running, path: str) -> None:
    asked = asked_of(path)
    for name in NAMED:
        choice = choice_of(path, "required", name)
        answer = httpx.post(server.url + path, json={**asked, "tool_choice": choice}, timeout=60)
        found = answer.json()
        if path.endswith("responses"):
            called = [item["name"] for item in found["output"] if item["type"] == "function_call"]
        else:
            message = found["choices"][0]["message"]
            called = [call["function"]["name"] for call in message["tool_calls"]]
        assert called == [name]
    for wrong in (choice_of(path, "auto", "div"), {"type": "function"}):
        answer = httpx.post(server.url + path, json={**asked, "tool_choice": wrong}, timeout=60)
        assert answer.status_code == 400
        assert ("'div'" if "div" in str(wrong) else "tool_choice") in answer.json()["error"][
            "message"
        ]


def test_what_is_not_allowed_is_text(server: Running, say: Say) -> None:
    """A model that calls another tool all the same has said so, and called nothing."""
    say("<tool_call>", SCRIPT[: SCRIPT.index("</tool_call>") + len("</tool_call>")])
    path = "/v1/chat/completions"
    body = {**asked_of(path), "max_tokens": 200, "tool_choice": choice_of(path, "auto", "sub")}
    (choice,) = httpx.post(server.url + path, json=body, timeout=60).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert '"add"' in choice["message"]["content"]


def test_tools_that_run_elsewhere_are_refused(server: Running) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    body = {"messages": MESSAGES, "max_tokens": 4, "tools": tools}
    answer = httpx.post(f"{server.url}/v1/messages", json=body)
    assert answer.status_code == 400
    assert "web_search_20250305" in answer.json()["error"]["message"]
