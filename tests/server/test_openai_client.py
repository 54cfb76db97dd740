"""The ``openai`` package, unmodified, against a running server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from strata import LLM, SamplingParams
from support.running import NAMES, Running

openai = pytest.importorskip("openai", reason="the package openai is not installed")

MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
MODEL = NAMES[0]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    for name in NAMES:
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_chat_equals_the_class(client: Any, llm: LLM, seed: int, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=16, logprobs=2)
    expected = llm.chat(MESSAGES, params)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        seed=seed,
        temperature=temperature,
        max_completion_tokens=16,
        logprobs=True,
        top_logprobs=2,
    )
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert expected.logprobs is not None
    shown = expected.logprobs[: len(choice.logprobs.content)]
    assert len(shown) >= len(expected.logprobs) - 1
    # JSON carries a float64 to the bit.
    assert [t.logprob for t in choice.logprobs.content] == [s.logprob for s in shown]
    assert [[t.logprob for t in c.top_logprobs] for c in choice.logprobs.content] == [
        [logprob for _, logprob in s.top] for s in shown
    ]
    assert [bytes(t.bytes) for t in choice.logprobs.content] == [
        llm.tokenizer.token_bytes(s.token, special=True) for s in shown
    ]


def test_a_stream_is_the_answer_in_pieces(client: Any) -> None:
    asked = {
        "model": MODEL,
        "messages": MESSAGES,
        "seed": 3,
        "max_tokens": 24,
        "n": 3,
        "logprobs": True,
        "stop": ["Blue", "zzz"],
    }
    whole = client.chat.completions.create(**asked)
    texts, tokens = [""] * 3, [0] * 3
    finished: dict[int, str] = {}
    usage = None
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert usage is None, "usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            assert choice.index not in finished
            texts[choice.index] += choice.delta.content or ""
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
            if choice.finish_reason:
                finished[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert tokens == [len(choice.logprobs.content) for choice in whole.choices]
    assert finished == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert len(set(texts)) > 1, "choices differ"


def test_a_known_prefix_is_told_in_the_usage(client: Any) -> None:
    # A prompt that no other test has; whole blocks of it are found again.
    prompt = [1000 + i for i in range(200)]
    asked: Any = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "temperature": 0}
    cold, warm = (client.completions.create(**asked) for _ in range(2))
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert warm.usage.prompt_tokens_details.cached_tokens == 192
    assert warm.choices == cold.choices
    other = [1000 + 2 * i for i in range(200)]
    client.completions.create(**{**asked, "prompt": other})
    both = client.completions.create(**{**asked, "prompt": [prompt, other], "n": 2})
    assert both.usage.prompt_tokens == 2 * 200
    assert both.usage.prompt_tokens_details.cached_tokens == 2 * 192
    assert both.choices[0].text == both.choices[1].text == cold.choices[0].text


def test_who_says_nothing_gets_what_the_model_states(client: Any, llm: LLM) -> None:
    wanted = llm.chat(MESSAGES, replace(llm.sampling_defaults.params, max_tokens=8)).text
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
        assert answer.choices[0].message.content == wanted


def test_choices_have_seeds_of_their_own(client: Any, llm: LLM) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=5, max_tokens=8, n=2
    )
    for choice in answer.choices:
        params = SamplingParams(temperature=1.0, seed=5 + choice.index, max_tokens=8)
        assert choice.message.content == llm.chat(MESSAGES, params).text


def test_penalties_bias_and_filters_reach_the_sampler(client: Any, llm: LLM) -> None:
    (token, *_) = llm.tokenize(" the")
    options: Any = {
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {str(token): -100},
        "max_tokens": 20,
        "extra_body": {"top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2},
    }
    params = SamplingParams(
        temperature=0.7,
        top_p=0.9,
        seed=1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={token: -100},
        max_tokens=20,
        top_k=30,
        min_p=0.01,
        repetition_penalty=1.2,
    )
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, **options)
    assert answer.choices[0].message.content == llm.chat(MESSAGES, params).text


def test_completions(client: Any, llm: LLM) -> None:
    prompts = ["The sky is", "One, two,"]
    params = SamplingParams(max_tokens=8, logprobs=1)
    expected = llm.generate(prompts, params)
    answer = client.completions.create(
        model=MODEL, prompt=prompts, temperature=0, max_tokens=8, logprobs=1
    )
    assert [choice.text for choice in answer.choices] == [output.text for output in expected]
    for choice, output in zip(answer.choices, expected, strict=True):
        assert output.logprobs is not None
        assert choice.logprobs.token_logprobs == [sample.logprob for sample in output.logprobs]
        assert "".join(choice.logprobs.tokens) == choice.text
    ids = llm.tokenize(prompts[0], add_special=True)
    for prompt in (ids, [ids]):
        answer = client.completions.create(
            model=MODEL, prompt=prompt, temperature=0, max_tokens=8, echo=True
        )
        assert answer.choices[0].text == prompts[0] + expected[0].text
    pieces = client.completions.create(
        model=MODEL, prompt=prompts[0], temperature=0, max_tokens=8, echo=True, stream=True
    )
    assert "".join(p.choices[0].text for p in pieces) == prompts[0] + expected[0].text


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
    ],
)
def test_completions_without_what_is_missing(client: Any, options: Any, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=MODEL, prompt="a", **options)
    assert caught.value.status_code == 400
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_answers_by_a_schema(client: Any, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"enum": [1, 2]}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
        seed=1,
        max_tokens=200,
        stream=stream,
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    value = json.loads(text)
    assert value["colour"] in ("red", "blue")
    assert value["count"] in (1, 2)


def test_other_grammars(client: Any) -> None:
    def ask(**options: Any) -> str:
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=100, seed=2, **options
        )
        return str(answer.choices[0].message.content)

    assert re.fullmatch("[a-f]{4}-[0-9]{2}", ask(extra_body={"regex": "[a-f]{4}-[0-9]{2}"}))
    assert ask(extra_body={"grammar": 'root ::= "yes" | "no"'}) in ("yes", "no")
    text = ask(response_format={"type": "json_object"}, temperature=0)
    assert text.startswith("{")
    for wrong in ({"regex": "("}, {"grammar": "root ::= ("}, {"grammar": "a", "regex": "a"}):
        with pytest.raises(openai.BadRequestError):
            ask(extra_body=wrong)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_is_called(client: Any, choice: Any, stream: bool) -> None:
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": choice,
        "seed": 1,
        "max_tokens": 100,
    }
    if stream:
        calls: dict[int, Any] = {}
        finish = None
        for chunk in client.chat.completions.create(**asked, stream=True):
            finish = chunk.choices[0].finish_reason or finish
            for call in chunk.choices[0].delta.tool_calls or ():
                assert not chunk.choices[0].delta.content
                if call.id is not None:
                    calls[call.index] = call
                else:
                    calls[call.index].function.arguments += call.function.arguments
        (call,) = calls.values()
    else:
        answer = client.chat.completions.create(**asked)
        finish = answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
        (call,) = answer.choices[0].message.tool_calls
    assert finish == "tool_calls"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}

    assistant = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call.id, "type": "function", "function": call.function.model_dump()}],
    }
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    followed = client.chat.completions.create(
        model=MODEL,
        messages=[*asked["messages"], assistant, result],
        tools=[WEATHER],
        max_tokens=8,
    )
    assert followed.choices[0].message.content is not None


def test_calls_and_results_are_understood_without_their_tools(client: Any) -> None:
    function = {"name": "add", "arguments": "{}"}
    call = {"id": "a", "type": "function", "function": function}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "2"},
        ],
        max_tokens=2,
    )
    assert answer.usage.completion_tokens > 0


def test_no_tool_is_called_when_it_must_not_be(client: Any, llm: LLM) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=8,
    )
    expected = llm.chat(MESSAGES, SamplingParams(max_tokens=8))
    assert answer.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"model": "nothing"}, 404),
        ({"messages": []}, 400),
        ({"messages": [{"role": "king", "content": "a"}]}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({"tool_choice": "some"}, 400),
        ({"temperature": -1}, 400),
        ({"logit_bias": {"999999999": 1}}, 400),
        ({"logit_bias": {"5": 101}}, 400),
        ({"n": 33}, 400),
        ({"n": 0}, 400),
        ({"top_logprobs": 3}, 400),
        ({"temprature": 0.5}, 400),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400),
        ({"messages": [{"role": "user", "content": "x" * 4_000_000}]}, 400),
        ({"tool_choice": "required"}, 400),
        ({"response_format": {"type": "json_schema"}}, 400),
        ({"response_format": {"type": "xml"}}, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_those_of_the_client(
    client: Any, options: dict[str, Any], status: int, stream: bool
) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 1, "stream": stream}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked, extra_body=options)
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"n": 0}, "n: ", "n"),
        (
            {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
            "content.0.type: ",
            "messages",
        ),
        ({"tool_choice": "some"}, "tool_choice: Input should be 'none'", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function: ", "tool_choice"),
        ({"stop": 5}, "stop: Input should be a valid string, or: ", "stop"),
    ],
)
def test_what_is_wrong_is_named_as_it_was_sent(
    client: Any, options: Any, message: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=options)
    assert message in caught.value.body["message"]
    assert "literal[" not in caught.value.body["message"]
    assert caught.value.param == param


def test_what_means_nothing_here_is_passed_over(client: Any) -> None:
    plain = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=4
    )
    full = client.chat.completions.create(
        model=MODEL,
        messages=[{**MESSAGES[0], "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}],
        temperature=0,
        max_tokens=4,
        stop=None,
        store=False,
        user="somebody",
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=False,
        reasoning_effort="low",
        tools=[],
        response_format={"type": "text"},
        extra_body={"top_k": -1, "top_logprobs": 0, "logprobs": False},
    )
    assert full.choices[0].message == plain.choices[0].message


def test_a_prompt_that_is_too_long_has_the_code_that_clients_look_for(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 3000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[10**6])
    assert caught.value.code is None


def test_more_tokens_than_there_is_room_for_is_no_error(client: Any) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=[5] * 1020, max_tokens=9999, temperature=0
    )
    assert answer.usage.completion_tokens <= 4
