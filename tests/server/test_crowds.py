"""Many connections at once: those that say nothing keep nobody out, and fill no log."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.running import NAMES, Running, load, running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

from strata.server.crowd import SPARE, Crowd  # noqa: E402

LIMIT = 20


@pytest.fixture(scope="module")
def small(smollm2_path: Path, backend: str) -> Iterator[Running]:
    limits = {"connections": LIMIT, "hello_s": 600.0, "request_s": 600.0}
    with load(smollm2_path, backend=backend) as served, running(served, **limits) as server:
        yield server


@pytest.fixture
def crowd(small: Running) -> Iterator[list[socket.socket]]:
    """Sockets to be closed at the end."""
    socks: list[socket.socket] = []
    yield socks
    for sock in socks:
        sock.close()
    wait_for(lambda: len(small.server._crowd) == 0)


@pytest.mark.parametrize("said", [b"", b"G", b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_silent_crowd_keeps_nobody_out(
    small: Running, crowd: list[socket.socket], said: bytes
) -> None:
    for _ in range(5 * LIMIT):
        crowd.append(small.connect())
        with suppress(OSError):
            crowd[-1].sendall(said)
    assert httpx.get(f"{small.url}/health", timeout=30).status_code == 200
    body = {"model": NAMES[0], "prompt": "a", "max_tokens": 1}
    assert httpx.post(f"{small.url}/v1/completions", json=body, timeout=30).status_code == 200
    wait_for(lambda: len(small.server._crowd) <= LIMIT + SPARE)
    # Not even accepted: the first of them are closed.
    crowd[0].settimeout(20)
    with suppress(ConnectionResetError):
        assert crowd[0].recv(1) == b""


def test_a_crowd_that_asks_leaves_room_for_health(
    small: Running, crowd: list[socket.socket]
) -> None:
    body = b'{"model":"smollm2","prompt":"a","stream":true,"max_tokens":900,"ignore_eos":true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    for _ in range(LIMIT):
        crowd.append(small.connect())
        crowd[-1].sendall(head % len(body) + body)
    wait_for(lambda: small.service.bridge.open == LIMIT)
    assert httpx.get(f"{small.url}/health", timeout=30).status_code == 200
    refused = httpx.get(f"{small.url}/v1/models", timeout=30)
    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"] == "1"
    # Those who were there are served on.
    assert small.service.bridge.open == LIMIT
    for sock in crowd:
        sock.close()
    wait_for(lambda: small.service.bridge.open == 0)


def test_heads_that_never_end_have_a_bound_together(
    small: Running, crowd: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strata.server.crowd.HEADS_BYTES", 50_000)
    begun = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 12_000
    for _ in range(LIMIT // 2):
        crowd.append(small.connect())
        with suppress(OSError):
            crowd[-1].sendall(begun)
    wait_for(lambda: len(small.server._crowd) <= 50_000 // len(begun))
    # Who came last is still there, and who sends a whole head is served.
    with suppress(OSError):
        crowd[-1].sendall(b'\r\nContent-Length: 15\r\n\r\n{"content":"a"}')
    assert crowd[-1].recv(12) == b"HTTP/1.1 200"
    wait_for(lambda: small.server._crowd._held == sum(small.server._crowd._waiting.values()))
    assert small.server._crowd._held <= 50_000


def test_who_sends_ahead_of_the_answers_is_let_go(small: Running) -> None:
    with small.connect() as sock:
        body = b'{"model":"smollm2","prompt":"a","stream":true,"max_tokens":900,"ignore_eos":true}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        sock.sendall(head % len(body) + body)
        assert sock.recv(12) == b"HTTP/1.1 200"
        with suppress(OSError):
            sock.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 200_000)
        wait_for(lambda: small.service.bridge.open == 0)


def test_who_says_nothing_is_let_go_soon(small: Running, smollm2_path: Path, backend: str) -> None:
    with (
        load(smollm2_path, backend=backend) as served,
        running(served, hello_s=0.2, request_s=600.0) as server,
        server.connect() as silent,
        server.connect() as begun,
    ):
        begun.sendall(b"GET /health HTTP/1.1\r\n")
        silent.settimeout(20)
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        begun.sendall(b"Host: localhost\r\n\r\n")
        begun.settimeout(20)
        assert begun.recv(12) == b"HTTP/1.1 200"


def test_without_descriptors_it_waits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Idle:
        gone = 0

        def let_go(self) -> None:
            Idle.gone += 1

    async def accept() -> int:
        loop, asked = asyncio.get_running_loop(), 0
        crowd = Crowd(4)
        for _ in range(3):
            crowd.came(Idle())

        async def sock_accept(sock: object) -> Any:
            nonlocal asked
            asked += 1
            if asked > 5:
                raise asyncio.CancelledError
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        monkeypatch.setattr("strata.server.crowd._BACKOFF_S", 0.001)
        sock: Any = SimpleNamespace(setblocking=lambda blocking: None)
        with suppress(asyncio.CancelledError):
            await crowd.accept(sock, asyncio.Protocol)
        # Each time somebody was let go of, as long as there was anybody.
        assert Idle.gone == 3
        return asked

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(accept()) == 6
    assert server_lines(caplog) == ["no connection can be accepted: Too many open files"]


def server_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "strata.server"]
