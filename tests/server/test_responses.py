"""OpenAI's Responses, with the unmodified ``openai`` package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from strata import LLM, SamplingParams
from strata.server.admission import Admission
from strata.server.errors import ApiError
from strata.server.openai.response_store import ResponseStore
from support.running import NAMES, Running

openai = pytest.importorskip("openai", reason="the package openai is not installed")

MODEL = NAMES[0]
MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_is_that_of_the_class(client: Any, llm: LLM) -> None:
    expected = llm.chat(MESSAGES, SamplingParams(max_tokens=12))
    asked: Any = {"model": MODEL, "max_output_tokens": 12, "temperature": 0}
    for given in (MESSAGES, MESSAGES[0]["content"]):
        found = client.responses.create(input=given, **asked)
        assert found.output_text == expected.text
    assert found.id.startswith("resp_")
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.usage.input_tokens == expected.prompt_tokens
    assert found.usage.output_tokens == len(expected.token_ids)
    system = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    found = client.responses.create(input=MESSAGES, instructions="Be brief.", **asked)
    assert found.output_text == llm.chat(system, SamplingParams(max_tokens=12)).text


def test_a_stream_is_the_answer_in_events(client: Any, llm: LLM) -> None:
    expected = llm.chat(MESSAGES, SamplingParams(max_tokens=12)).text
    asked: Any = {"model": MODEL, "max_output_tokens": 12, "temperature": 0}
    with client.responses.stream(input=MESSAGES, **asked) as stream:
        events = list(stream)
        final = stream.get_final_response() if events[-1].type == "response.completed" else None
    assert [event.sequence_number for event in events] == sorted(
        {e.sequence_number for e in events}
    )
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == expected
    assert final is None
    assert len({e.item_id for e in events if hasattr(e, "item_id")}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_is_read(client: Any, stream: bool) -> None:
    asked: Any = {"model": MODEL, "tools": [WEATHER], "temperature": 0, "max_output_tokens": 60}
    question = [{"role": "user", "content": "What is the weather in Rome?"}]
    found = client.responses.create(
        input=question, tool_choice={"type": "function", "name": "weather"}, stream=stream, **asked
    )
    if stream:
        events = list(found)
        found = events[-1].response
        deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == found.output[-1].arguments
        assert len(deltas) > 1
    (call,) = found.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert call.arguments.startswith('{"city"')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 25 C"}
    asked |= {"max_output_tokens": 10}
    sent = client.responses.create(input=[*question, call, result], **asked)
    stored = client.responses.create(input=[result], previous_response_id=found.id, **asked)
    assert sent.output_text == stored.output_text
    assert sent.usage.input_tokens == stored.usage.input_tokens


def test_what_is_stored_is_gone_on_with(client: Any, llm: LLM) -> None:
    asked: Any = {"model": MODEL, "max_output_tokens": 8, "temperature": 0}
    first = client.responses.create(input=MESSAGES, instructions="Be brief.", **asked)
    second = client.responses.create(input="And one more?", previous_response_id=first.id, **asked)
    # Instructions hold for one response.
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And one more?"},
    ]
    assert second.output_text == llm.chat(turns, SamplingParams(max_tokens=8)).text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    assert (
        client.responses.input_items.list(first.id).data[0].content[0].text == "Name three colours."
    )
    client.responses.delete(second.id)
    unkept = client.responses.create(input=MESSAGES, store=False, **asked)
    for id in (second.id, unkept.id, "resp_other"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(id)
    client.responses.delete(first.id)


def test_answers_by_a_schema(client: Any) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Colour(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        name: str = pydantic.Field(pattern="^[a-z]{3,8}$")
        warm: bool

    found = client.responses.parse(
        model=MODEL, input=MESSAGES, text_format=Colour, temperature=0, max_output_tokens=60
    )
    assert isinstance(found.output_parsed, Colour)


@pytest.mark.parametrize(
    "options",
    [
        {"input": None},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"tools": [{"type": "web_search"}]},
        {"previous_response_id": "resp_0"},
        {"background": True},
        {"input": "word " * 3000},
    ],
)
def test_errors_are_those_of_the_client(client: Any, options: Any) -> None:
    asked = {"model": MODEL, "input": "Hi", **options}
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(**asked)
    assert caught.value.status_code in (400, 404)


def test_oldest_turns_are_dropped_on_demand(client: Any) -> None:
    turns: list[Any] = []
    for number in range(40):
        turns.append({"role": "user", "content": f"Question {number}: " + "word " * 30})
        turns.append({"role": "assistant", "content": "An answer."})
    turns.append({"role": "user", "content": "Name a colour."})
    raw = client.responses.with_raw_response.create(
        model=MODEL, input=turns, truncation="auto", max_output_tokens=8, temperature=0
    )
    assert "messages are left out, the oldest" in raw.headers["x-strata-warning"]
    found = raw.parse()
    assert found.usage.input_tokens + 8 <= 1024
    assert found.usage.input_tokens > 700
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=turns)
    assert caught.value.code == "context_length_exceeded"


def test_the_store_is_bounded() -> None:
    from strata.memory import Ledger

    admission = Admission(Ledger(), 400_000)
    store = ResponseStore(admission)
    for number in range(200):
        store.put({"id": f"resp_{number}"}, [{"role": "user", "content": "a" * 1000}], [])
        assert admission.held <= 100_000
    assert store.get("resp_199").response == {"id": "resp_199"}
    with pytest.raises(ApiError):
        store.get("resp_0")
    store.put({"id": "resp_large"}, [{"role": "user", "content": "a" * 50_000}], [])
    with pytest.raises(ApiError):
        store.get("resp_large")
    assert admission.held == 0
