"""The ``anthropic`` package, unmodified, against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from strata import LLM, SamplingParams
from support.running import NAMES, Running

anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")

MODEL = NAMES[0]
MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
GREEDY = {"temperature": 0}
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message_equals_the_class(client: Any, llm: LLM) -> None:
    answer = client.messages.create(
        model=MODEL, max_tokens=16, messages=MESSAGES, system="Be brief.", extra_body=GREEDY
    )
    system = {"role": "system", "content": "Be brief."}
    expected = llm.chat([system, *MESSAGES], SamplingParams(max_tokens=16))
    assert [block.text for block in answer.content] == [expected.text]
    assert (
        answer.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[expected.finish_reason]
    )
    assert answer.usage.input_tokens == expected.prompt_tokens
    assert answer.usage.output_tokens == len(expected.token_ids)
    count = client.messages.count_tokens(model=MODEL, messages=MESSAGES, system="Be brief.")
    assert count.input_tokens == expected.prompt_tokens


def test_a_stream_has_every_event_in_order(client: Any) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 16, "messages": MESSAGES, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    raw = [event.type for event in client.messages.create(**asked, stream=True)]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(raw[2:-3]) == {"content_block_delta"}
    assert "text" in events
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_stop_sequence_is_named(client: Any, llm: LLM) -> None:
    text = llm.chat(MESSAGES, SamplingParams(max_tokens=16)).text
    stop = text.split()[2]
    answer = client.messages.create(
        model=MODEL,
        max_tokens=16,
        messages=MESSAGES,
        extra_body=GREEDY,
        stop_sequences=["zzz", stop],
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[: text.index(stop)]


def test_the_assistants_last_turn_is_continued(client: Any, llm: LLM) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Red, green and"}]
    answer = client.messages.create(model=MODEL, max_tokens=6, messages=begun, extra_body=GREEDY)
    prompt = llm.tokenizer.apply_chat_template(
        begun, add_generation_prompt=False, continue_final_message=True
    )
    ids = llm.tokenize(prompt, parse_special=True)
    assert answer.content[0].text == llm.generate(ids, SamplingParams(max_tokens=6)).text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used(client: Any, choice: Any, stream: bool) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Rome's weather?"}]}],
        "tools": [WEATHER],
        "tool_choice": choice,
    }
    if stream:
        with client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked)
    (block,) = answer.content
    assert (block.type, block.name, answer.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert block.input["city"] in ("Paris", "Rome")
    result: Any = [{"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}]
    followed = client.messages.create(
        model=MODEL,
        max_tokens=8,
        messages=[
            *asked["messages"],
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [*result, {"type": "text", "text": "Well?"}]},
        ],
        tools=[WEATHER],
    )
    assert followed.usage.output_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_answers_by_a_schema(client: Any, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = client.messages.create(
        model=MODEL,
        max_tokens=50,
        messages=MESSAGES,
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        stream=stream,
    )
    if stream:
        events = [event for event in answer if event.type == "content_block_delta"]
        text = "".join(event.delta.text for event in events)
    else:
        text = answer.content[0].text
    assert json.loads(text)["colour"] in ("red", "blue")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "nothing"}, "NotFoundError"),
        ({"messages": []}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "BadRequestError"),
        ({"tool_choice": {"type": "any"}}, "BadRequestError"),
        ({"extra_body": {"output_config": {"format": {"type": "xml"}}}}, "BadRequestError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_of_the_client(
    client: Any, options: dict[str, Any], error: str, stream: bool
) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1, "stream": stream, **options}
    with pytest.raises(getattr(anthropic, error)) as caught:
        client.messages.create(**asked)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["message"]
