"""Work on large texts rests between its pieces while others wait for tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from threading import Thread, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Counter
from starlette.types import Message, Receive, Scope, Send

from strata import giving_way
from strata.decode.schemas import closed, enforced
from strata.giving_way import MOST_S, PIECE_S, REST, Pace, begin_work, give_way, set_pace
from strata.memory import Ledger
from strata.server.admission import SHARE, Admission
from strata.server.errors import ApiError
from strata.server.guard import Guard, error_reply
from strata.server.openai.chat import plain_message
from strata.server.openai.requests import ChatRequest
from strata.server.parsers.plain import in_words
from strata.server.settings import Settings
from strata.text import chat
from strata.text.special import SpecialToken, SpecialTokens


class Clock:
    """A time in which every step of the work takes ``each``."""

    def __init__(self, each: float) -> None:
        self.now = 0.0
        self.each = each
        self.rests: list[float] = []

    def __call__(self) -> float:
        self.now += self.each
        return self.now

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)


def test_it_rests_for_longer_than_it_works() -> None:
    clock = Clock(PIECE_S / 4)
    pace = Pace(lambda: True, clock, clock.rest)
    for _ in range(1000):
        pace.step()
    worked = clock.now
    assert sum(clock.rests) == pytest.approx(REST * worked, rel=0.3)
    assert max(clock.rests) <= MOST_S


def test_nobody_rests_for_nobody_nor_for_what_others_took() -> None:
    clock = Clock(PIECE_S / 4)
    pace = Pace(lambda: False, clock, clock.rest)
    for _ in range(100):
        pace.step()
    assert not clock.rests
    slow = Clock(1.0)
    Pace(lambda: True, slow, slow.rest).step()
    assert slow.rests == [MOST_S]


def test_a_job_begins_rested() -> None:
    clock = Clock(0.0)
    pace = Pace(lambda: True, clock, clock.rest)
    clock.now = 9.0
    set_pace(pace)
    try:
        begin_work()
        give_way()
    finally:
        set_pace(None)
    assert not clock.rests


def test_threads_without_a_pace_go_on() -> None:
    clock = Clock(1.0)
    set_pace(Pace(lambda: True, clock, clock.rest))
    try:
        other = Thread(target=give_way)
        other.start()
        other.join()
        assert not clock.rests
    finally:
        set_pace(None)


@pytest.mark.parametrize("busy", [False, True])
def test_who_makes_errors_is_told_in_turn_while_others_wait_for_tokens(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as come at once: from one connection or from many."""
    rests: list[float] = []
    waited, this = asyncio.sleep, get_ident()

    async def sleep(seconds: float) -> None:
        if get_ident() != this:  # servers of other tests rest in threads of their own
            return await waited(seconds)
        rests.append(seconds)
        return await waited(0)

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        raise ApiError(int(scope["path"][1:]), "no")

    told: list[int] = []

    async def send(message: Message) -> None:
        told.extend(filter(None, [message.get("status")]))

    async def receive() -> Message:
        return {"type": "http.request"}

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr("strata.server.guard.perf_counter", lambda: 5.0)
    metrics = SimpleNamespace(requests=Counter("asked", "", ("a", "b"), registry=None))
    guard = Guard(refuse, Settings(), metrics, Admission(Ledger(), 1 << 20), lambda: busy)
    statuses = [400, 404, 413, 500, 503, *[400] * 200]
    for status in statuses:
        scope = {"type": "http", "method": "GET", "path": f"/{status}", "headers": []}
        asyncio.run(guard(scope, receive, send))
    assert told == statuses
    assert rests == pytest.approx([min(0.01 * n, 1.0) for n in range(203)] * busy)


def test_who_waits_to_be_told_an_error_holds_nothing_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission = Admission(Ledger(), 1000)
    events: list[object] = []

    async def sleep(seconds: float) -> None:
        events.append(admission.held)

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        SHARE.get().add(1000)
        await error_reply(scope["path"], ApiError(400, "no"))(scope, receive, send)

    async def send(message: Message) -> None:
        events.append(message["type"])

    async def receive() -> Message:
        return {"type": "http.request"}

    monkeypatch.setattr("strata.server.guard.asyncio", SimpleNamespace(sleep=sleep))
    metrics = SimpleNamespace(requests=Counter("asked", "", ("a", "b"), registry=None))
    guard = Guard(refuse, Settings(), metrics, admission, lambda: True)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(guard(scope, receive, send))
    assert events == [0, "http.response.start", "http.response.body"]


@pytest.mark.parametrize("work", [closed, enforced])
def test_a_wide_schema_can_be_put_off(
    work: Callable[[Mapping[str, Any]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[None] = []
    pace = Pace(lambda: True)
    monkeypatch.setattr(pace, "step", lambda: steps.append(None))
    set_pace(pace)
    try:
        work({"properties": {f"p{n}": {"type": "integer"} for n in range(50)}})
    finally:
        set_pace(None)
    assert len(steps) >= 50


def test_names_of_special_tokens_are_looked_for_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[None] = []
    pace = Pace(lambda: True)
    monkeypatch.setattr(pace, "step", lambda: steps.append(None))
    set_pace(pace)
    try:
        parts = SpecialTokens([SpecialToken(7, "<s>", True)]).partition("<s>" * 50, True)
        assert next(parts) == 7
    finally:
        set_pace(None)
    assert len(steps) >= 50


@pytest.mark.parametrize("stage", ["read", "plain", "in words", "checked", "rendered"])
def test_every_stage_of_a_long_conversation_can_be_put_off(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its messages: who waits meanwhile may wait for one of them, and not for all."""
    count = 50
    messages = [{"role": "user", "content": "hi"}] * count
    body = json.dumps({"messages": messages})
    asked = ChatRequest.model_validate_json(body)
    steps: list[None] = []
    pace = Pace(lambda: True)
    monkeypatch.setattr(pace, "step", lambda: steps.append(None))
    set_pace(pace)
    try:
        if stage == "read":
            ChatRequest.model_validate_json(body)
        elif stage == "plain":
            [plain_message(message) for message in asked.messages]
        elif stage == "in words":
            in_words(messages)
        elif stage == "checked":
            chat._plain_messages(messages)
        else:
            source = "{% for m in messages %}{{ m.content }}{% endfor %}"
            template = chat.ChatTemplate(source)
            template.foreign = False
            assert template.render(messages) == "hi" * count
    finally:
        set_pace(None)
    assert len(steps) >= count
    assert giving_way._threads.pace is None
