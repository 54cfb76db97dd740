"""Tools used through every protocol, by a model that says what a script says, as its family does.

The script is a grammar that allows one text: tokens, pieces of text and their ends are the
engine's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from support.running import NAMES, Running

openai = pytest.importorskip("openai", reason="the package openai is not installed")
anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")
ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")

MESSAGES: Any = [{"role": "user", "content": "Add one and two."}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
}
ARGUMENTS = {"a": 1, "b": 'x "y" é'}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]

# What marks the format in a template, what the answer goes on with, and the answer.
SCRIPTS: dict[str, tuple[str, str]] = {
    "harmony": (
        "<|channel|> <|message|>",
        "<|start|>assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>"
        "commentary<|message|>So<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        f"<|constrain|>json<|message|>{JSON}<|call|>",
    ),
    "qwen-coder": (
        "<function= <parameter= </think>",
        "<think>hm</think>So<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        '<parameter=b>\nx "y" é\n</parameter>\n</function>\n</tool_call>',
    ),
    "glm": (
        "<arg_key> </think>",
        "<think>hm</think>So<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        '<arg_key>b</arg_key>\n<arg_value>x "y" é</arg_value>\n</tool_call>',
    ),
    "deepseek": (
        "<｜tool▁call▁begin｜> </think>",
        "<think>hm</think>So<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>"
        f"{JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "kimi": (
        "<|tool_call_begin|> </think>",
        "<think>hm</think>So<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
        f"<|tool_call_argument_begin|>{JSON}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "minimax2": (
        "<minimax:tool_call> </think>",
        '<think>hm</think>So<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1'
        '</parameter>\n<parameter name="b">x "y" é</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "gemma4": (
        "<|tool_call>call:",
        '<|channel>thought\nhm\n<channel|>So<|tool_call>call:add{a:1,b:<|"|>x "y" é<|"|>}'
        "<tool_call|>",
    ),
    "lfm2": (
        "<|tool_list_start|> </think>",
        "<think>hm</think>So<|tool_call_start|>[add(a=1, b='x \"y\" é')]<|tool_call_end|>",
    ),
    "mistral": (
        "[TOOL_CALLS] [/THINK]",
        f"[THINK]hm[/THINK]So[TOOL_CALLS]add[ARGS]{JSON}",
    ),
    "hermes": (
        "<tool_call> </think>",
        f'<think>hm</think>So<tool_call>\n{{"name": "add", "arguments": {JSON}}}\n</tool_call>',
    ),
    "granite3": (
        "<|tool_call|> </think>",
        f'<think>hm</think>So<|tool_call|>[{{"name": "add", "arguments": {JSON}}}]',
    ),
}

Say = Callable[[str, str], None]


def from_openai(server: Running, stream: bool, limit: int) -> tuple[Any, ...]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "messages": MESSAGES, "tools": TOOLS, "max_tokens": limit}
        if not stream:
            (choice,) = client.chat.completions.create(**asked).choices
            message = choice.message
            calls = [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
            thoughts = getattr(message, "reasoning_content", None)
            return thoughts, message.content, calls, choice.finish_reason
        thoughts = text = ""
        found: dict[int, list[str]] = {}
        deltas = 0
        for chunk in client.chat.completions.create(**asked, stream=True):
            (choice,) = chunk.choices
            thoughts += getattr(choice.delta, "reasoning_content", None) or ""
            text += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                if part.id is not None:
                    assert part.type == "function"
                    found[part.index] = [part.id, part.function.name, ""]
                deltas += bool(part.function.arguments)
                found[part.index][2] += part.function.arguments
        assert deltas > 4
        return thoughts, text, [tuple(call) for call in found.values()], choice.finish_reason


def from_anthropic(server: Running, stream: bool, limit: int) -> tuple[Any, ...]:
    tools = [{"name": "add", "input_schema": SCHEMA}]
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "messages": MESSAGES, "tools": tools, "max_tokens": limit}
        if stream:
            with client.messages.stream(**asked) as events:
                answer = events.get_final_message()
        else:
            answer = client.messages.create(**asked)
    blocks = {block.type: block for block in answer.content}
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    call = blocks["tool_use"]
    return (
        blocks["thinking"].thinking,
        blocks["text"].text,
        [(call.id, call.name, call.input)],
        answer.stop_reason,
    )


def from_ollama(server: Running, stream: bool, limit: int) -> tuple[Any, ...]:
    client = ollama.Client(host=server.url)
    options = {"num_predict": limit}
    answer = client.chat(NAMES[0], MESSAGES, tools=TOOLS, options=options, stream=stream)
    parts = list(answer) if stream else [answer]
    calls = [
        ("an id", call.function.name, dict(call.function.arguments))
        for part in parts
        for call in part.message.tool_calls or ()
    ]
    thoughts = "".join(part.message.thinking or "" for part in parts)
    text = "".join(part.message.content or "" for part in parts)
    return thoughts, text, calls, parts[-1].done_reason


PROTOCOLS = {"openai": from_openai, "anthropic": from_anthropic, "ollama": from_ollama}
ENDS = {"openai": "tool_calls", "anthropic": "tool_use", "ollama": "stop"}


def _who() -> list[tuple[str, str, bool]]:
    """Every format through some protocol, and one through all."""
    ways = [(protocol, stream) for protocol in PROTOCOLS for stream in (True, False)]
    some = [(name, *ways[place % len(ways)]) for place, name in enumerate(SCRIPTS)]
    return sorted({*some, *(("gemma4", *way) for way in ways)})


@pytest.mark.parametrize(("name", "protocol", "stream"), _who())
def test_a_call(server: Running, say: Say, name: str, protocol: str, stream: bool) -> None:
    say(*SCRIPTS[name])
    thoughts, text, calls, end = PROTOCOLS[protocol](server, stream, 200)
    assert (thoughts, text, end) == ("hm", "So", ENDS[protocol])
    ((id, called, arguments),) = calls
    assert called == "add"
    assert id == "functions.add:0" if name == "kimi" and protocol != "ollama" else id
    assert (json.loads(arguments) if protocol == "openai" else arguments) == ARGUMENTS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_that_is_cut_short(server: Running, say: Say, protocol: str, stream: bool) -> None:
    template, text = SCRIPTS["hermes"]
    begun = text[: text.index("y")]
    limit = len(server.service.llm.tokenize(begun))
    say(template, begun + " " + "y" * 200)
    thoughts, said, calls, end = PROTOCOLS[protocol](server, stream, limit)
    assert (thoughts, said) == ("hm", "So")
    assert end == ("max_tokens" if protocol == "anthropic" else "length")
    if protocol == "ollama":
        assert calls == []
        return
    ((_, called, arguments),) = calls
    assert called == "add"
    if protocol == "openai":
        assert arguments.startswith('{"a": 1, "b": "x')
    else:
        assert arguments["a"] == 1


def test_a_whole_exchange(server: Running, say: Say) -> None:
    """What the model called goes back to it with the result."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": NAMES[0], "tools": TOOLS, "max_tokens": 200}
        for name in ("harmony", "mistral"):
            say(*SCRIPTS[name])
            answer = client.chat.completions.create(**asked, messages=MESSAGES)
            message = answer.choices[0].message
            (call,) = message.tool_calls
            result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
            final = "<|start|>assistant<|channel|>final<|message|>" if name == "harmony" else ""
            say(SCRIPTS[name][0], final + "Three.")
            end = client.chat.completions.create(
                **asked, messages=[*MESSAGES, message.model_dump(exclude_none=True), result]
            )
            assert end.choices[0].message.content == "Three."
            assert end.choices[0].finish_reason == "stop"
            assert end.usage.prompt_tokens > answer.usage.prompt_tokens
