"""An engine that fails under its clients: each is told, and the server goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from strata.engine import Delta, Engine
from strata.errors import StrataError
from strata.server import service
from strata.server.answers import Answer
from support.running import NAMES, Running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

PROMPT = {"prompt": "Hello"}
MESSAGES = {"messages": [{"role": "user", "content": "Hello"}]}
OPENAI = {"model": NAMES[0], "max_tokens": 40}
OLLAMA = {"model": NAMES[0], "options": {"num_predict": 40}}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": OPENAI | PROMPT,
    "/v1/chat/completions": OPENAI | MESSAGES,
    "/v1/messages": OPENAI | MESSAGES,
    "/api/chat": OLLAMA | MESSAGES,
    "/api/generate": OLLAMA | PROMPT,
}
AFTER = 2
"""The step that fails, so that an answer has begun. Where the same was answered before, all of the
rest may be guessed: there need not be a third."""


@pytest.fixture
def failing(server: Running, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], None]:
    """Let the engine's step number ``after`` from now raise."""

    def fail(error: Exception, after: int) -> None:
        left = after
        real = Engine.step

        def step(engine: Engine) -> list[Delta]:
            nonlocal left
            left -= 1
            if left == 0:
                raise error
            return real(engine)

        monkeypatch.setattr(Engine, "step", step)

    return fail


@pytest.mark.parametrize("path", ASKED)
def test_a_failure_is_a_500_with_its_message(
    server: Running, failing: Callable[[Exception, int], None], path: str
) -> None:
    failing(StrataError("the disk is gone"), AFTER)
    answer = httpx.post(server.url + path, json={**ASKED[path], "stream": False})
    assert answer.status_code == 500
    assert "the disk is gone" in answer.text
    answer = httpx.post(server.url + path, json={**ASKED[path], "stream": False})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ASKED)
def test_a_failure_in_a_stream_is_its_last_event(
    server: Running, failing: Callable[[Exception, int], None], path: str
) -> None:
    failing(StrataError("the disk is gone"), AFTER)
    answer = httpx.post(server.url + path, json={**ASKED[path], "stream": True})
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line]
    last = json.loads(lines[-1].removeprefix("data: "))
    assert "the disk is gone" in json.dumps(last["error"])
    assert len(lines) > 1


def test_what_nobody_foresaw_is_logged_and_not_shown(
    server: Running, failing: Callable[[Exception, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    failing(ZeroDivisionError("a secret"), 1)
    with caplog.at_level(logging.ERROR, "strata.server"):
        answer = httpx.post(f"{server.url}/v1/completions", json=ASKED["/v1/completions"])
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


def test_a_stream_that_breaks_off_is_logged(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Answer, "add", broken)
    asked = {**ASKED["/v1/messages"], "stream": True}
    answer = httpx.post(f"{server.url}/v1/messages", json=asked)
    assert "a secret" not in answer.text
    assert answer.text.splitlines()[-2].startswith('data: {"type":"error"')
    assert "a secret" in caplog.text


def test_an_endpoint_that_breaks_is_a_500(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(server.service.metrics, "text", broken)
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 500
    # Outside the other protocols' paths errors are in llama-server's form.
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


def test_without_the_package_of_grammars_all_else_is_answered(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no llguidance, as on systems with musl."""
    monkeypatch.delitem(vars(server.service), "grammars", raising=False)
    monkeypatch.setattr(service, "find_spec", lambda name: None)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    asked = ASKED["/v1/chat/completions"] | {"max_tokens": 2}
    url = f"{server.url}/v1/chat/completions"
    for field in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a+"}},
        {"tools": [tool], "tool_choice": "required"},
    ):
        answer = httpx.post(url, json=asked | field)
        assert answer.status_code == 400
        assert "pip install 'strata-llm[server]'" in answer.json()["error"]["message"]
    assert httpx.post(url, json=asked | {"tools": [tool]}).status_code == 200
    assert httpx.post(url, json=asked).status_code == 200


def test_all_who_are_served_together_are_told(
    server: Running, failing: Callable[[Exception, int], None]
) -> None:
    more = {"n": 3, "max_tokens": 500, "ignore_eos": True, "stream": True}
    asked = ASKED["/v1/completions"] | more
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as first:
        wait_for(lambda: server.service.bridge.status.running == 3)
        failing(StrataError("gone"), 2)
        last = [line for line in first.iter_lines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "gone"
