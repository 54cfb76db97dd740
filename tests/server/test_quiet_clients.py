"""Who asks much holds up nobody who waits for tokens: what a request's many parts take is not done
in the event loop, and threads share the interpreter in short turns.

How long tokens take beside attacks is measured by `bench/beside_attacks.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pydantic import BaseModel

from strata.memory import Ledger
from strata.server.admission import UPLOAD_BYTES_S, Admission
from strata.server.anthropic import requests as anthropic
from strata.server.ollama import requests as ollama
from strata.server.openai import requests as openai
from strata.server.reading import _parse
from support.running import NAMES, Running, load, running
from support.sampling import every

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

MODEL = NAMES[0]
SAID = {"role": "user", "content": "hi"}
SIZE = 100_000
ASKED: dict[str, Callable[[int], dict[str, Any]]] = {
    "/v1/chat/completions": lambda many: {"messages": [SAID] * many},
    "/v1/messages": lambda many: {"messages": [SAID] * many, "max_tokens": 1},
    "/v1/messages/count_tokens": lambda many: {"messages": [SAID] * many},
    "/api/chat": lambda many: {"messages": [SAID] * many, "truncate": False},
    "/v1/responses": lambda many: {"input": [SAID] * many},
    "/v1/chat/completions/input_tokens": lambda many: {"messages": [SAID] * many},
    "/apply-template": lambda many: {"messages": [SAID] * many},
    "/tokenize": lambda many: {"content": "<|im_end|>" * many},
    # The oldest turns are left out.
    "/api/chat?": lambda many: {
        "messages": [SAID] * many,
        "options": {"num_predict": 1},
        "stream": False,
    },
}


@pytest.fixture(scope="module")
def quiet(smollm2_path: Path) -> Iterator[Running]:
    with (
        load(smollm2_path, parallel=1, context=256) as llm,
        running(llm, unknown_fields="warn") as server,
    ):
        yield server


def calls_in_the_loop(server: Running, path: str, many: int) -> int:
    """Calls of functions in the event loop's thread while a request of ``many`` parts, and always
    as many bytes, is served."""
    count = 0

    def counting(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    body = {"model": MODEL, **ASKED[path](many), "ignored": ""}
    body["ignored"] = "a" * (SIZE - len(json.dumps(body)))
    loop = server.service.bridge._loop
    assert loop is not None
    begun = threading.Event()

    def begin() -> None:
        sys.setprofile(counting)
        begun.set()

    with httpx.Client(timeout=60) as client:
        client.get(server.url + "/health")
        loop.call_soon_threadsafe(begin)
        assert begun.wait(20)
        client.post(server.url + path, json=body)
        loop.call_soon_threadsafe(sys.setprofile, None)
        ended: Any = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        ended.result()
    return count


@pytest.mark.parametrize("path", every(3, ASKED))
def test_the_loop_does_not_work_for_every_message(quiet: Running, path: str) -> None:
    few = min(calls_in_the_loop(quiet, path, 100) for _ in range(3))
    many = min(calls_in_the_loop(quiet, path, 2_000) for _ in range(3))
    assert many - few < 1_000


@pytest.mark.parametrize(
    "model", [openai.ChatRequest, anthropic.MessagesRequest, ollama.ChatRequest]
)
def test_reading_many_messages_gives_way(model: type[BaseModel]) -> None:
    """Between two messages Python runs, and another thread may go on: one call for all of them
    would have the interpreter for longer than a token takes."""
    body = {"model": MODEL, "max_tokens": 1, "messages": [SAID] * 500}
    calls = 0

    def counting(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(counting)
    try:
        _parse(model, json.dumps(body).encode())
    finally:
        sys.setprofile(None)
    assert calls >= 500


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own there")
def test_large_texts_come_behind_tokens(quiet: Running) -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    service = quiet.service
    least = min(19, priority() + 5)
    assert service._large_texts.submit(priority).result(20) == least
    assert service._renderer.submit(priority).result(20) == least
    assert service._texts.submit(priority).result(20) == priority()


def test_a_server_is_not_looked_through_for_garbage(quiet: Running) -> None:
    # Of this, which takes a tenth of a second, all threads would wait.
    assert gc.get_freeze_count() > 30_000
    assert gc.get_threshold()[0] > 5_000
    assert sys.getswitchinterval() < 1e-3


def test_who_asks_little_does_not_wait_for_a_large_text(
    quiet: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = quiet.service.llm.tokenizer
    goes_on, begun = threading.Event(), threading.Event()
    working = tokenizer.working_bytes

    def held(text: str) -> int:
        if len(text) > 1_000:
            begun.set()
            goes_on.wait(30)
        return working(text)

    monkeypatch.setattr(tokenizer, "working_bytes", held)
    large = {"content": "many words " * 500, "ignored": "a" * SIZE}
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(
                httpx.post(quiet.url + "/tokenize", json=large, timeout=60)
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(20)
    try:
        small = httpx.post(quiet.url + "/tokenize", json={"content": "a word"}, timeout=20)
        assert len(small.json()["tokens"]) == 2
        assert not answers
    finally:
        goes_on.set()
        for thread in threads:
            thread.join()
    assert [len(answer.json()["tokens"]) for answer in answers] == [1_001, 1_001]


def test_large_bodies_take_their_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that come at once wait one behind the other; what came while nothing did is not saved
    up."""
    waited: list[float] = []
    rest, this = asyncio.sleep, threading.get_ident()

    async def sleep(seconds: float) -> None:
        if threading.get_ident() != this:  # servers of other tests rest in threads of their own
            return await rest(seconds)
        waited.append(seconds)

    async def parts() -> None:
        admission = Admission(Ledger(), 1 << 20)
        loop = asyncio.get_running_loop()
        for now in (5.0, 5.0, 5.001, 9.0):
            monkeypatch.setattr(loop, "time", lambda now=now: now)
            monkeypatch.setattr(asyncio, "sleep", sleep)
            await admission.take_time(64_000)
            monkeypatch.undo()

    asyncio.run(parts())
    each = 64_000 / UPLOAD_BYTES_S
    assert waited == pytest.approx([each, 2 * each, 3 * each - 0.001, each])
