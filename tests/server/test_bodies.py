"""What bodies may become in memory is counted before they are parsed."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strata._native as _native
from strata.guard.limits import TEMPLATE_BYTES_EACH
from strata.memory import Ledger
from support.running import NAMES, Running, load, running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

from pydantic import BaseModel, ValidationError  # noqa: E402

from strata.server.admission import OWNER, SHARE, Admission, Measure  # noqa: E402
from strata.server.anthropic.requests import MessagesRequest  # noqa: E402
from strata.server.errors import ApiError  # noqa: E402
from strata.server.llama.texts import DetokenizeRequest  # noqa: E402
from strata.server.ollama.requests import ChatRequest as OllamaChat  # noqa: E402
from strata.server.ollama.requests import GenerateRequest  # noqa: E402
from strata.server.openai.requests import ChatRequest, CompletionRequest  # noqa: E402
from strata.server.reading import _parse  # noqa: E402
from strata.server.service import Service  # noqa: E402
from support.sampling import every  # noqa: E402

MODEL = NAMES[0]
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
EVERY = 1 << 40
"""Values: all of a body's are counted."""
PATHS = ("/v1/chat/completions", "/v1/messages", "/api/chat")
MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    MessagesRequest,
    OllamaChat,
    GenerateRequest,
    DetokenizeRequest,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(value=values, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_counting_misses_nothing(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    counted, depth, width = _native.measure_json(text.encode("utf-8", "replace"), EVERY)

    def count(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(1 + count(v) for v in value.values())
        return 1 + sum(map(count, value)) if isinstance(value, list) else 1

    def nested(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(nested, inner), default=0) if isinstance(value, dict | list) else 0

    def widest(value: Any) -> int:
        if isinstance(value, dict):
            return max((max(widest(k), widest(v)) for k, v in value.items()), default=0)
        if isinstance(value, list):
            return max(map(widest, value), default=0)
        return ord(max(value, default="a")) if isinstance(value, str) else 0

    assert count(value) <= counted <= 3 * count(value)
    assert depth == nested(value)
    assert widest(value) < 256**width


@given(st.binary(max_size=100))
def test_counting_reads_no_further_than_the_text(data: bytes) -> None:
    for end in (b"", b'"', b'"\\', b'"\\u'):
        _native.measure_json(data + end, EVERY)


@given(value=values, most=st.integers(1, 20))
def test_counting_ends_at_the_bound(value: Any, most: int) -> None:
    text = json.dumps(value).encode()
    every, counted = _native.measure_json(text, EVERY)[0], _native.measure_json(text, most)[0]
    assert counted == min(every, most + 1)


HOSTILE = [
    '{"messages":[' + ",".join(["1"] * 20_000) + "]}",
    '{"messages":[' + ",".join(["{}"] * 10_000) + "]}",
    '{"messages":[' + ",".join(['{"role":"user","content":""}'] * 4_000) + '],"model":"m"}',
    '{"messages":[' + ",".join(['{"role":1,"content":[1,2]}'] * 3_000) + '],"model":"m"}',
    '{"model":"m","ignored":' + "[[]," * 60 + "1" + ",[]]" * 60 + "}",
    '{"model":"m","ignored":[' + ",".join(["[]"] * 16_000) + "]}",
    '{"model":"m","ignored":[' + ",".join(['{"a":{}}'] * 5_000) + "]}",
    '{"model":"m","ignored":{' + ",".join(f'"{n}":0' for n in range(16_000)) + "}}",
    '{"model":"m","prompt":[' + ",".join(["[9]"] * 10_000) + "]}",
    '{"model":"m","prompt":[' + ",".join(["99999"] * 30_000) + '],"tokens":[1.5]}',
    '{"tokens":[' + ",".join(["-5"] * 30_000) + "]}",
    '{"tokens":[' + ",".join(["70000"] * 30_000) + "]}",
    '{"model":"m","logit_bias":{' + ",".join(f'"{n}":1' for n in range(16_000)) + "}}",
    '{"model":"m","logit_bias":{' + ",".join(f'"x{n}":"y"' for n in range(16_000)) + "}}",
    '{"model":"m","tools":[' + ",".join(['{"function":{"name":""}}'] * 4_000) + "]}",
    '{"model":"m","format":{' + ",".join(f'"{n}":[{{}}]' for n in range(6_000)) + "}}",
    '{"model":"m","messages":[{"role":"user","content":"' + "\U0001f642" * 50_000 + '"}]}',
    '{"model":"m","messages":[{"role":"user","content":"' + "\\n" * 100_000 + '"}]}',
    '{"model":"m","ignored":"' + "\\ud83d\\ude42" * 20_000 + '"}',
    '{"model":"m","ignored":"' + "a" * 200_000 + '"}',
]


@pytest.mark.parametrize("model", every(3, MODELS))
def test_parsing_takes_no_more_than_was_counted(model: type[BaseModel]) -> None:
    for text in HOSTILE:
        body = text.encode()
        tracemalloc.start()
        try:
            parsed = _parse(model, body)
            if hasattr(parsed, "messages"):
                parsed.model_dump()
        except (ApiError, ValidationError):
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < Measure.of(body, EVERY).cost, text[:80]


@pytest.fixture(scope="module")
def strict(smollm2_path: Path, backend: str) -> Iterator[Running]:
    limits = {"requests_bytes": 32 << 20, "request_s": 5.0, "unknown_fields": "warn"}
    with load(smollm2_path, backend=backend) as served, running(served, **limits) as server:
        yield server
        # All was given back.
        wait_for(lambda: server.service.admission.held == 0)
        assert server.service.llm.ledger.owned[OWNER] == 0


def post(server: Running, path: str, body: bytes) -> Any:
    return httpx.post(server.url + path, content=body, timeout=60)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("ignored", "bound"),
    [
        ("[" + "[]," * 1_000_000 + "[]]", "more than 3"),
        ('"' + "a" * 8_000_000 + '"', "larger than 4793490 bytes"),
        ('"' + "\U0001f642" * 400_000 + '"', "33.6 MB for all requests"),
    ],
    ids=["values", "bytes", "wide"],
)
def test_what_can_never_fit_is_told_its_bound(
    strict: Running, path: str, ignored: str, bound: str
) -> None:
    body = json.dumps(CHAT)[:-1] + f', "ignored": {ignored}}}'
    data = body.encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    answer = b""
    with strict.connect() as sock:
        with suppress(OSError):
            sock.sendall(head.encode() + data)
        while b"}" not in answer:
            part = sock.recv(1 << 16)
            assert part
            answer += part
    assert answer.startswith(b"HTTP/1.1 413")
    assert bound in answer.decode()


@pytest.mark.parametrize("path", PATHS)
def test_wrong_members_end_the_reading_at_the_first(strict: Running, path: str) -> None:
    answer = post(strict, path, b'{"model":"smollm2","messages":[' + b"1," * 20_000 + b"1]}")
    assert answer.status_code == 400
    assert "messages.0" in answer.text
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", PATHS)
def test_nesting_has_a_bound(strict: Running, path: str) -> None:
    deep = json.dumps(CHAT)[:-1] + ', "ignored": ' + "[" * 200 + "]" * 200 + "}"
    answer = post(strict, path, deep.encode())
    assert answer.status_code == 400
    assert "nested 201 deep; at most 64" in answer.text


@pytest.mark.parametrize(
    "field",
    [
        {"stop": ["a" * 100_000] * 40},
        {"stop": "a" * 100_000},
        {"logit_bias": {str(n): 1 for n in range(10_000)}},
    ],
)
def test_samplers_have_bounds(strict: Running, field: dict[str, Any]) -> None:
    answer = post(strict, "/v1/chat/completions", json.dumps({**CHAT, **field}).encode())
    assert answer.status_code == 400
    assert next(iter(field)) in answer.text
    assert len(answer.content) < 1000


def test_large_bodies_that_fit_are_served(strict: Running) -> None:
    body = json.dumps({**CHAT, "ignored": ["x" * 1000] * 500, "more": list(range(10_000))})
    assert post(strict, "/v1/chat/completions", body.encode()).status_code == 200


@pytest.mark.parametrize("extra", ["0\r\n\r\n", ""])
def test_a_length_told_in_two_ways_is_refused(strict: Running, extra: str) -> None:
    with strict.connect() as sock:
        sock.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + extra.encode()
        )
        assert_answered_and_closed(sock)


def assert_answered_and_closed(sock: socket.socket) -> None:
    sock.settimeout(20)
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    assert data.startswith(b"HTTP/1.1 400")
    assert data.count(b"HTTP/1.1") == 1
    assert b"connection: close" in data.lower()
    assert b"Content-Length or Transfer-Encoding" in data


def test_who_waits_is_served_in_turn() -> None:
    async def all_of_it() -> list[str]:
        ledger, order = Ledger(), list[str]()
        admission = Admission(ledger, 100, patience_s=20)

        async def ask(name: str, nbytes: int) -> None:
            assert await admission.take(nbytes)
            order.append(name)
            assert admission.held <= 100
            assert ledger.owned[OWNER] == admission.held
            await asyncio.sleep(0)
            admission.give(nbytes)

        assert admission.try_take(90)
        tasks = [asyncio.create_task(ask(name, n)) for name, n in [("a", 60), ("b", 5), ("c", 70)]]
        await asyncio.sleep(0)
        # There would be room for b, but a came first.
        assert order == []
        tasks[2].cancel()
        await asyncio.sleep(0)
        admission.give(90)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.held, ledger.owned[OWNER]) == (0, 0)
        return order

    assert asyncio.run(all_of_it()) == ["a", "b"]


def test_who_waits_too_long_is_told_to_come_back() -> None:
    async def wait() -> bool:
        admission = Admission(Ledger(), 100, patience_s=0.01)
        assert admission.try_take(90)
        assert not await admission.take(20)
        admission.give(90)
        return admission.held == 0 and await admission.take(100)

    assert asyncio.run(wait())


def test_the_budget_is_the_last_word() -> None:
    admission = Admission(Ledger(50), 100)
    assert admission.try_take(40)
    assert not admission.try_take(20)
    assert admission.held == 40


@pytest.mark.parametrize("apart", [False, True])
def test_a_guarded_rendering_is_lent_what_it_takes(apart: bool) -> None:
    ledger, body = Ledger(1 << 30, 0), json.dumps([{"content": "a" * 50_000}]).encode()
    admission = Admission(ledger, 8 << 20)
    seen: list[int] = []

    def render(messages: Any, **options: Any) -> str:
        seen.append(admission.held)
        return "prompt"

    async def serve() -> None:
        with admission.request() as share, ThreadPoolExecutor(1) as threads:
            SHARE.set(share)
            await share.raise_to(Measure.of(body, EVERY))
            seen.append(admission.held)
            tokenizer = SimpleNamespace(
                apply_chat_template=render, usual_variables=lambda tools: {}
            )
            service: Any = SimpleNamespace(
                _renders_apart=apart,
                _renderer=threads,
                llm=SimpleNamespace(tokenizer=tokenizer),
            )
            assert await Service.chat_text(service, [{}]) == "prompt"
            seen.append(admission.held)

    asyncio.run(serve())
    before, within, after = seen
    assert after == before
    assert within - before == (apart and (TEMPLATE_BYTES_EACH + 3) * len(body))


def test_texts_that_surely_do_not_fit_are_not_encoded_whole(
    strict: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = strict.service.llm.tokenizer
    encoded = 0
    merge = tokenizer._encoder._merge  # type: ignore[attr-defined]

    def counting(text: str, *engine: Any) -> list[int]:
        nonlocal encoded
        encoded += len(text)
        ids: list[int] = merge(text, *engine)
        return ids

    monkeypatch.setattr(tokenizer._encoder, "_merge", counting)
    # Short enough to be of the context's longest tokens, and of many more than the context.
    for text in ("1" * 40_000, "many short words " * 2_000):
        messages = [{"role": "user", "content": text}]
        for path in PATHS:
            encoded = 0
            answer = post(strict, path, json.dumps({**CHAT, "messages": messages}).encode())
            assert answer.status_code == 400
            assert "does not fit" in answer.text
            assert encoded < 20_000
        # Counting them is another matter.
        counted = post(
            strict, "/v1/messages/count_tokens", json.dumps({**CHAT, "messages": messages}).encode()
        )
        assert counted.json()["input_tokens"] > 1024


def test_a_stretch_that_cannot_be_cut_is_told_its_bound(strict: Running) -> None:
    with monkeypatched_capacity(strict, 6 << 20):
        answer = post(strict, "/tokenize", json.dumps({"content": "A" * 50_000}).encode())
        assert answer.status_code == 413
        assert "cannot be cut" in answer.text
        assert "6.29 MB for all requests" in answer.text
        short = post(strict, "/tokenize", json.dumps({"content": "A cat. " * 7_000}).encode())
        assert short.json()["count"] == len(short.json()["tokens"]) > 20_000


@contextmanager
def monkeypatched_capacity(server: Running, nbytes: int) -> Iterator[None]:
    admission = server.service.admission
    before, admission.capacity = admission.capacity, nbytes
    try:
        yield
    finally:
        admission.capacity = before
