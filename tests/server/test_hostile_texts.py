"""Grammars and variables that are meant to hurt: who sends them is told so; others are served."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from strata.guard import limits
from strata.guard.nursery import nursery
from support.running import NAMES, Running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
pytest.importorskip("llguidance", reason="llguidance, which compiles grammars, is not installed")

CHAT: dict[str, Any] = {
    "model": NAMES[0],
    "messages": [{"role": "user", "content": "Say hi."}],
    "max_tokens": 8,
    "temperature": 0,
}
ENDLESS = {"type": "integer", "multipleOf": 99999989}


@pytest.fixture
def http(server: Running) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def with_schema(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {**CHAT, "response_format": form}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/messages", {"tools": [{"type": "\x7f" * 50_000, "name": "x"}]}),
        ("/v1/chat/completions", {"\x7f" * 50_000: 1}),
    ],
)
def test_an_error_quotes_no_more_than_can_be_read(http: Any, path: str, more: Any) -> None:
    answer = http.post(path, json={**CHAT, **more})
    assert answer.status_code == 400
    assert len(answer.content) < 20_000


def test_endless_schemas_are_refused_and_stop_nobody(http: Any) -> None:
    answers = []

    def attack() -> None:
        answers.append(httpx.post(http.base_url.join("/v1/chat/completions"), **body))

    body = {"json": with_schema(ENDLESS), "timeout": 60}
    attackers = [threading.Thread(target=attack) for _ in range(6)]
    for attacker in attackers:
        attacker.start()
    quiet = http.post("/v1/chat/completions", json=CHAT)
    assert quiet.status_code == 200
    for attacker in attackers:
        attacker.join()
    assert [answer.status_code for answer in answers] == [400] * 6
    message = answers[0].json()["error"]["message"]
    assert "6 MiB of memory" in message
    assert http.post("/v1/chat/completions", json=CHAT).json()["choices"] == quiet.json()["choices"]
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
    answer = http.post("/v1/chat/completions", json={**with_schema(schema), "max_tokens": 40})
    assert answer.json()["choices"][0]["message"]["content"] == '{"a": 7}'


@pytest.mark.parametrize(
    "schema",
    [nested(100), nested(150), {"const": "\ud800"}, {"pattern": "("}, {"enum": []}, {"$ref": "#"}],
)
def test_odd_schemas_are_answered_or_refused(http: Any, schema: Any) -> None:
    answer = http.post("/v1/chat/completions", content=json.dumps(with_schema(schema)))
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    "grammar", ["start: " + "(" * 5000, "\ud800", "root ::= root", "start: /(/"]
)
def test_odd_grammars_are_answered_or_refused(http: Any, grammar: str) -> None:
    answer = http.post("/v1/chat/completions", content=json.dumps({**CHAT, "grammar": grammar}))
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    "name", ["tools", "self", "messages", "chat_template", "continue_final_message", "documents"]
)
def test_variables_that_the_server_sets(http: Any, name: str) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "chat_template_kwargs": {name: 1}})
    assert answer.status_code == 400
    assert name in answer.json()["error"]["message"]


def test_other_variables_have_any_name(http: Any) -> None:
    variables = {"a b": 1, "": 2, "cls": 3, "context": {"x": [None]}, "\u0661": 1}
    answer = http.post("/v1/chat/completions", json={**CHAT, "chat_template_kwargs": variables})
    assert answer.status_code == 200


def test_a_client_that_leaves_takes_its_grammar_along(
    http: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that it could only end because nobody waits.
    monkeypatch.setattr(limits, "COMPILE_S", 1000.0)
    monkeypatch.setattr(limits, "GRAMMAR_BYTES", 1 << 40)
    compiler = server.service.grammars
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=with_schema(ENDLESS), timeout=0.5)
    wait_for(lambda: not compiler._under_way)
    assert nursery().pid is not None
