"""Thoughts are told apart from answers, in every protocol's own way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from strata import LLM, SamplingParams
from strata.server import conversation
from strata.server.parsers import AnswerFormat
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.thinking import Thoughts
from support.running import NAMES, Running

if TYPE_CHECKING:
    from support.browser import Browser

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
def thinker(server: Running, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The model's thoughts and answer, where two of its words are the marks."""
    text = llm.chat(MESSAGES, SamplingParams(max_tokens=30)).text
    words = text.split()
    start, end = words[0], next(w for w in words[3:] if text.count(w) == 1)
    form = AnswerFormat(Hermes(), Thoughts(start, end))
    monkeypatch.setattr(conversation, "answer_format", lambda template: form)
    thoughts, answer = text.removeprefix(start).split(end)
    assert thoughts.strip()
    assert answer
    return thoughts.strip(), answer


def ask(server: Running, path: str, **body: Any) -> Any:
    whole = {"model": NAMES[0], "messages": MESSAGES, "max_tokens": 30, "temperature": 0, **body}
    answer = httpx.post(server.url + path, json=whole, timeout=60)
    assert answer.status_code == 200
    return answer


def events(answer: Any) -> list[Any]:
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_openai(server: Running, thinker: tuple[str, str]) -> None:
    path = "/v1/chat/completions"
    message = ask(server, path).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == thinker
    deltas = [e["choices"][0]["delta"] for e in events(ask(server, path, stream=True))]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert (thoughts, "".join(delta.get("content") or "" for delta in deltas)) == thinker


def test_anthropic(server: Running, thinker: tuple[str, str]) -> None:
    thought, text = ask(server, "/v1/messages").json()["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", thinker[0])
    assert text == {"type": "text", "text": thinker[1]}
    found = events(ask(server, "/v1/messages", stream=True))
    started = [e for e in found if e["type"] == "content_block_start"]
    assert [e["content_block"]["type"] for e in started] == ["thinking", "text"]
    deltas = [e["delta"] for e in found if e["type"] == "content_block_delta"]
    thoughts = "".join(delta.get("thinking", "") for delta in deltas)
    assert (thoughts, "".join(delta.get("text", "") for delta in deltas)) == thinker


@pytest.mark.parametrize("stream", [False, True])
def test_ollama(server: Running, thinker: tuple[str, str], stream: bool) -> None:
    options = {"temperature": 0, "num_predict": 30}
    parts = events(ask(server, "/api/chat", options=options, stream=stream))
    messages = [part["message"] for part in parts]
    thoughts = "".join(message.get("thinking", "") for message in messages)
    assert (thoughts, "".join(message["content"] for message in messages)) == thinker
    body = {"prompt": MESSAGES[0]["content"], "options": options, "stream": stream}
    parts = events(ask(server, "/api/generate", **body))
    thoughts = "".join(part.get("thinking", "") for part in parts)
    assert (thoughts, "".join(part["response"] for part in parts)) == thinker


def test_an_answer_by_a_schema_is_no_thought(server: Running, thinker: tuple[str, str]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes"]}}}
    answer = ask(server, "/v1/chat/completions", response_format=form).json()
    assert answer["choices"][0]["message"]["content"] == '"yes"'


@pytest.mark.slow
@pytest.mark.alone
def test_the_page(page: Browser, thinker: tuple[str, str]) -> None:
    page.open({"temperature": "0", "max_tokens": "30"})
    page.say(MESSAGES[0]["content"])
    page.answered()
    assert page.text(".answer .thinking summary") == "Thoughts"
    assert page.text(".answer .thinking p") == thinker[0]
    assert page.answers() == [thinker[1].strip()]
    thoughts = page.one(".answer .thinking p")
    assert not thoughts.is_displayed()
    page.one(".answer .thinking summary").click()
    assert thoughts.is_displayed()
    page.driver.refresh()
    page.wait(lambda: page.all(".answer .thinking summary"))
    assert page.text(".answer .thinking p") == thinker[0]
    assert page.overflow() == []
