"""Who may call, how much, and what becomes of clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from strata import LLM, SamplingParams
from strata.errors import UsageError
from strata.server import parting
from strata.server.settings import Settings
from support.running import KEY, NAMES, Running, load, running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

MODEL = NAMES[0]
LONG: dict[str, Any] = {
    "model": MODEL,
    "prompt": "Once upon a time",
    "max_tokens": 900,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture(scope="module")
def strict(smollm2_path: Path, backend: str) -> Iterator[Running]:
    """A server with a key and small limits."""
    limits = {
        "api_key": KEY,
        "queue": 3,
        "connections": 20,
        "body_bytes": 20_000,
        "requests_bytes": 150_000,
        "request_s": 0.5,
        "stall_s": 0.5,
        "keepalive_s": 0.05,
        "cors_origins": ("https://friend.example",),
        # One body is for several protocols.
        "unknown_fields": "warn",
    }
    with (
        load(smollm2_path, context=2048, backend=backend) as served,
        running(served, send_buffer=8192, **limits) as server,
    ):
        yield server


@pytest.fixture
def http(strict: Running) -> Iterator[Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=strict.url, headers=headers, timeout=30) as client:
        yield client
    strict.wait_until_free()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"x-api-key": "w\xf6rong"}, 401),
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
    ],
)
def test_the_key(strict: Running, headers: dict[str, str], status: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for path in ("/v1/models", "/api/tags", "/metrics", "/openapi.json"):
        assert httpx.get(strict.url + path, headers=encoded).status_code == status
    for path in ("/health", "/"):
        assert httpx.get(strict.url + path, headers=encoded).status_code == 200


def test_a_missing_key_is_told_in_each_body(strict: Running) -> None:
    openai = httpx.post(f"{strict.url}/v1/chat/completions").json()
    assert openai["error"]["code"] == "invalid_api_key"
    anthropic = httpx.post(f"{strict.url}/v1/messages").json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
    assert isinstance(httpx.post(f"{strict.url}/api/chat").json()["error"], str)


def test_names_bent_to_this_machine_are_refused(http: Any, strict: Running) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[", "a@localhost:x"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 403
    for host in ("localhost", "localhost:1", "127.0.0.1:99", "[::1]:5"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_foreign_pages_are_refused_and_friends_are_not(http: Any, strict: Running) -> None:
    body = {"content": "a"}

    def status(origin: str) -> int:
        return int(http.post("/tokenize", json=body, headers={"origin": origin}).status_code)

    assert status("https://evil.example") == 403
    assert status("null") == 403
    assert status("https://friend.example") == 200
    assert status(strict.url) == 200
    asked = {"access-control-request-method": "POST", "origin": "https://friend.example"}
    allowed = httpx.options(f"{strict.url}/v1/models", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://friend.example"
    asked["origin"] = "https://evil.example"
    refused = httpx.options(f"{strict.url}/v1/models", headers=asked)
    assert refused.status_code == 200
    assert "access-control-allow-origin" not in refused.headers


def test_foreign_pages_get_no_leave_by_default(server: Running) -> None:
    asked = {"access-control-request-method": "POST", "origin": "https://friend.example"}
    answer = httpx.options(f"{server.url}/v1/models", headers=asked)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body(http: Any, path: str, chunked: bool) -> None:
    data = b'{"model": "' + b"x" * 30_000 + b'"}'

    def parts() -> Iterator[bytes]:
        for at in range(0, len(data), 4096):
            yield data[at : at + 4096]

    answer = http.post(path, content=parts() if chunked else data)
    assert answer.status_code == 413
    assert "20000 bytes" in json.dumps(answer.json())


def test_large_bodies_together(http: Any, strict: Running) -> None:
    # Seven clients hold 19 kB each and do not end; there is room for 150 kB in all.
    part = b"x" * 19_000
    head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n"
    socks = [strict.connect() for _ in range(7)]
    try:
        for sock in socks:
            sock.sendall(f"{head}Content-Length: 20000\r\n\r\n".encode() + part)
        body = {"tokens": [1], "ignored": "y" * 18_500}

        def refused() -> bool:
            answer = http.post("/detokenize", json=body)
            return answer.status_code == 503 and answer.headers["retry-after"] == "1"

        wait_for(refused, 0.4)
    finally:
        for sock in socks:
            sock.close()
    wait_for(lambda: http.post("/detokenize", json=body).status_code == 200)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 15_000,
        b'{"model": NaN}',
        b'{"model": "smollm2", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "smollm2", "top_p": 1e999, "options": {"top_p": 1e999}, "prompt": "a"}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "smollm2", "messages": [{"role": "user", "content": {}}], "prompt": {}}',
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/api/chat",
        "/api/generate",
        "/api/show",
        "/tokenize",
        "/detokenize",
    ],
)
def test_bodies_that_are_no_request(http: Any, path: str, body: bytes) -> None:
    answer = http.post(path, content=body)
    if path == "/api/show" and b'"prompt"' in body:
        # It asks for no more than a name.
        assert answer.status_code == 200
    else:
        assert answer.status_code in (400, 404)
        assert "error" in answer.json()


def test_a_lone_surrogate_does_no_harm(http: Any) -> None:
    asked = b'{"model":"smollm2","prompt":"a\\ud800b","echo":true,"max_tokens":1}'
    for path, body in (("/v1/completions", asked), ("/tokenize", b'{"content":"\\udfff"}')):
        answer = http.post(path, content=body)
        assert answer.status_code == 400
        assert "is not JSON" in answer.json()["error"]["message"]


RAW = [
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x00\xff\xfe binary \x16\x03\x01",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
    b"GET /%ff%00/..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /web/..%2f..%2f__init__.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://other.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
]


@pytest.mark.parametrize("data", RAW)
def test_what_is_not_http_ends_without_a_hang(http: Any, strict: Running, data: bytes) -> None:
    """The request is answered, with no 5xx, or the connection is closed within its time."""
    with strict.connect() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_the_end(sock)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert b"strata" not in answer or b"import" not in answer
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /tok",
        f"POST /tokenize HTTP/1.1\r\nHost: a\r\nX-Api-Key: {KEY}\r\n".encode(),
        f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY}\r\n"
        "Content-Length: 9\r\n\r\n{".encode(),
    ],
)
def test_a_client_that_does_not_send_its_request_is_let_go(strict: Running, data: bytes) -> None:
    with strict.connect() as sock:
        for byte in data:
            sock.sendall(bytes([byte]))
        assert read_to_the_end(sock) == b""


@pytest.mark.parametrize("data", [b"a" * 3_000_000, b"GET / HTTP/9.9\r\n" * 200_000])
def test_who_still_sends_reads_why_it_was_refused(strict: Running, data: bytes) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if data.startswith(b"a"):
        head += b"X-Api-Key: %s\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(data))
    with strict.connect() as sock:
        sock.sendall(head)
        # By then it is answered, and would be closed.
        time.sleep(0.2)
        for start in range(0, len(data), 1 << 16):
            sock.sendall(data[start : start + (1 << 16)])
        sock.settimeout(10)
        answer = b""
        while part := sock.recv(1 << 16):
            answer += part
    status = b"413" if data.startswith(b"a") else b"400"
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_who_goes_on_for_ever_is_cut_off(strict: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parting, "BYTES", 1 << 20)
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Length: 99999999\r\n\r\n"
    with strict.connect() as sock:
        sock.sendall(head)
        time.sleep(0.2)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(bytes(90_000_000))


def read_to_the_end(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(1 << 16):
            data += part
    return data


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/api/generate"])
def test_a_client_that_vanishes_frees_its_request(
    http: Any, strict: Running, path: str, stream: bool
) -> None:
    options = {"num_predict": 2000}
    messages = [{"role": "user", "content": "Write a very long story."}]
    body = {**LONG, "stream": stream, "messages": messages, "options": options}
    before = strict.service.bridge.status.tokens
    with strict.connect() as sock:
        sock.sendall(request_bytes(body, path))
        wait_for(lambda: strict.service.bridge.status.running == 1)
        wait_for(lambda: strict.service.bridge.status.tokens > before + 20)
    strict.wait_until_free()
    # It was cut off long before its end.
    assert strict.service.bridge.status.tokens < before + 800


def test_a_client_that_does_not_read_is_let_go_and_holds_nobody_up(
    http: Any, strict: Running
) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(strict.address)
    with sock:
        many = {**LONG, "n": 3, "logprobs": 5, "max_tokens": 1500}
        sock.sendall(request_bytes(many))
        wait_for(lambda: strict.service.bridge.open == 3)
        wait_for(lambda: strict.service.bridge.open == 0)
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        assert answer.status_code == 200
        # What the sockets held is there to read; then comes the end, before that of the answer.
        assert b"[DONE]" not in read_to_the_end(sock)


def test_a_full_queue_says_when_to_come_back(http: Any, strict: Running) -> None:
    with http.stream("POST", "/v1/completions", json={**LONG, "n": 3}) as busy:
        assert busy.status_code == 200
        refused = http.post("/v1/completions", json={**LONG, "stream": False})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert http.post("/api/generate", json={"model": MODEL, "prompt": "a"}).status_code == 429


def test_many_clients_at_once_get_what_they_would_get_alone(server: Running, llm: LLM) -> None:
    prompts = [f"{word} is a word that" for word in ("one", "two", "three", "four")] * 5
    expected = {p: llm.generate(p, SamplingParams(max_tokens=12)).text for p in set(prompts)}

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

            async def ask(index: int, prompt: str) -> str:
                await asyncio.sleep(0.01 * (index % 7))
                body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0}
                if index % 2:
                    answer = await client.post("/v1/completions", json=body)
                    return str(answer.json()["choices"][0]["text"])
                text = ""
                url = "/v1/completions"
                async with client.stream("POST", url, json={**body, "stream": True}) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line[6:])["choices"][0]["text"]
                return text

            return await asyncio.gather(*(ask(i, p) for i, p in enumerate(prompts)))

    assert asyncio.run(ask_all()) == [expected[prompt] for prompt in prompts]


def test_a_long_prefill_shows_that_it_lives(server: Running) -> None:
    # Four others keep the machine busy, so that a fifth waits for its first token.
    others = [server.connect() for _ in range(4)]
    for sock in others:
        sock.sendall(request_bytes({**LONG, "max_tokens": 100}))
    wait_for(lambda: server.service.bridge.status.running == 4)
    asked = {**LONG, "prompt": [5] * 500, "max_tokens": 1}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    comments = [line for line in lines if line.startswith(":")]
    assert comments[0] == ": prompt 0/500"
    assert lines[-1] == "data: [DONE]"
    for sock in others:
        sock.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_let_in_only_with_a_key_or_on_purpose(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        Settings(host=host)
    assert not Settings(host=host, api_key="k").loopback
    assert not Settings(host=host, allow_unauthenticated=True).loopback
    with pytest.raises(UsageError, match="empty"):
        Settings(host=host, api_key=" ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert Settings(host=host).loopback


def test_nothing_is_left_over(server: Running) -> None:
    """Connections come and go; threads and open files do not add up."""

    def held() -> tuple[int, int]:
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        return threading.active_count(), files

    def once() -> None:
        with server.connect() as sock:
            sock.sendall(request_bytes({**LONG, "max_tokens": 200}))
            sock.recv(10)
        server.wait_until_free()

    once()
    wait_for(lambda: not server.server.server_state.connections)
    before = held()
    for _ in range(10):
        once()
    wait_for(lambda: not server.server.server_state.connections)
    wait_for(lambda: held() <= before)
