"""Beam search over HTTP, asked for as vLLM's clients do: what the class finds."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from strata import LLM
from strata.kv import PoolError
from support.running import NAMES, Running, wait_for

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_texts_are_those_that_the_class_finds(http: httpx.Client, llm: LLM) -> None:
    expected = llm.beam_search(PROMPT, beam_width=3, n=2, max_tokens=5, length_penalty=0.5)
    asked: dict[str, Any] = {
        "model": NAMES[0],
        "prompt": [PROMPT, PROMPT],
        "use_beam_search": True,
        "n": 2,
        "length_penalty": 0.5,
        "max_tokens": 5,
        "temperature": 0.0,
    }
    for width in ({"beam_width": 3}, {"best_of": 3}):
        answer = http.post("/v1/completions", json={**asked, **width})
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
        assert [c["text"] for c in said["choices"]] == [beam.text for beam in expected] * 2
        assert [c["finish_reason"] for c in said["choices"]] == [
            beam.finish_reason for beam in expected
        ] * 2
        tokens = 2 * sum(len(beam.token_ids) for beam in expected)
        assert said["usage"]["completion_tokens"] == tokens


def test_a_chat_is_searched_as_well(http: httpx.Client, llm: LLM) -> None:
    text = llm.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    ids = llm.tokenizer.encode(text, parse_special=True)
    expected = llm.beam_search(list(ids), beam_width=2, n=2, max_tokens=4)
    asked = {"messages": MESSAGES, "use_beam_search": True, "n": 2, "max_completion_tokens": 4}
    answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert [c["message"]["content"].strip() for c in said["choices"]] == [
        beam.text.strip() for beam in expected
    ]
    assert said["usage"]["prompt_tokens"] == len(ids)


def test_log_probabilities_are_those_of_plain_answers(http: httpx.Client) -> None:
    """A search along one way is greedy; of several, sums are what their ranks come from."""
    plain = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6, "logprobs": 3}
    greedy = http.post("/v1/completions", json=plain).json()["choices"][0]
    one = http.post("/v1/completions", json={**plain, "use_beam_search": True}).json()["choices"]
    assert one == [greedy]
    assert len(greedy["logprobs"]["tokens"]) == 6
    more = {"use_beam_search": True, "n": 3, "ignore_eos": True}
    beams = http.post("/v1/completions", json={**plain, **more}).json()["choices"]
    sums = [sum(beam["logprobs"]["token_logprobs"]) for beam in beams]
    assert sums == sorted(sums, reverse=True)
    assert all("".join(beam["logprobs"]["tokens"]) == beam["text"] for beam in beams)
    chat = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 4}
    said = http.post("/v1/chat/completions", json={**chat, "temperature": 0}).json()["choices"]
    asked = {**chat, "use_beam_search": True}
    assert http.post("/v1/chat/completions", json=asked).json()["choices"] == said


def test_a_search_is_counted(http: httpx.Client, server: Running) -> None:
    metrics = server.service.metrics
    before = metrics.prompt_tokens, metrics.output_tokens
    asked = {"prompt": PROMPT, "use_beam_search": True, "n": 2, "max_tokens": 3}
    usage = http.post("/v1/completions", json=asked).json()["usage"]
    counted = metrics.prompt_tokens - before[0], metrics.output_tokens - before[1]
    assert counted == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"stream": True}, "stream"),
        ({"stop": ["x"]}, "stop"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"n": 4, "beam_width": 3}, "n"),
        ({"beam_width": 65}, "beam_width"),
        ({"use_beam_search": False, "beam_width": 3}, "beam_width"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "length_penalty"),
    ],
)
def test_what_a_search_cannot_obey_is_refused_by_name(
    http: httpx.Client, more: dict[str, Any], param: str
) -> None:
    asked = {"prompt": PROMPT, "use_beam_search": True, "max_tokens": 2, **more}
    answer = http.post("/v1/completions", json=asked)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_what_never_fits_is_not_to_be_tried_again(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others it waits; where nobody runs it is told."""
    tried = []

    def advance(search: object) -> None:
        tried.append(search)
        raise PoolError("2 beams do not fit the KV that is free")

    engine = server.service.llm.engine
    status = engine.status()
    monkeypatch.setattr(engine, "advance", advance)
    seen = iter([*[replace(status, running=1)] * 3, replace(status, running=0)])
    monkeypatch.setattr(engine, "status", lambda: next(seen, status))
    asked = {"prompt": PROMPT, "use_beam_search": True, "n": 2, "max_tokens": 3}
    answer = http.post("/v1/completions", json=asked)
    assert answer.status_code == 400, answer.text
    assert "2 beams do not fit the KV that is free" in answer.json()["error"]["message"]
    assert tried


def test_what_asks_for_nothing_is_no_search(http: httpx.Client) -> None:
    plain = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    said = http.post("/v1/completions", json=plain).json()["choices"]
    off = {**plain, "use_beam_search": False, "length_penalty": 1.0}
    assert http.post("/v1/completions", json=off).json()["choices"] == said


def test_a_search_that_nobody_waits_for_gives_back_its_blocks(server: Running) -> None:
    """The fixture looks whether all is free."""
    asked = {"prompt": PROMPT, "use_beam_search": True, "n": 8, "max_tokens": 200}
    body = json.dumps({**asked, "ignore_eos": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    url = urlsplit(server.url)
    searching = server.service.searching
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        wait_for(searching.locked)
    wait_for(lambda: not searching.locked())
