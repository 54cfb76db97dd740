"""Who sends no more, who reads nothing for a while, and who asks for more than there may be."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from strata.decode import SamplingParams
from strata.engine import Job
from strata.errors import UsageError
from strata.server.answers import Answers
from strata.server.bridge import Bridge, Observer
from support.running import Running, wait_for


def read_to_the_end(sock: socket.socket) -> bytes:
    """All that comes."""
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


def test_a_half_closed_client_gets_its_answer(server: Running) -> None:
    """It says that it sends no more (`nc -N` does), and reads on: all it gets is its answer, behind
    lines that say nothing."""
    body = b'{"prompt": "Once", "max_tokens": 40, "ignore_eos": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(head % len(body) + body)
        sock.shutdown(socket.SHUT_WR)
        answer = read_to_the_end(sock)
    *before, last = answer.split(b"HTTP/1.1 ")[1:]
    assert all(line.startswith(b"100 ") for line in before), answer[:200]
    assert last.startswith(b"200 OK")
    assert b'"completion_tokens":40' in last


def test_a_client_that_is_gone_is_noticed_at_once(server: Running) -> None:
    """Its end looks as if it sent no more only; nothing is computed for it all the same."""
    body = b'{"prompt": "Once", "max_tokens": 900, "ignore_eos": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with server.connect() as sock:
        sock.sendall(head % len(body) + body)
        wait_for(lambda: server.service.bridge.status.running == 1)
    tokens = server.service.metrics.output_tokens
    wait_for(lambda: server.service.bridge.open == 0)
    assert server.service.metrics.output_tokens - tokens < 800


def test_more_answers_than_the_queue_holds_are_refused_for_that(llm: Any) -> None:
    bridge = Bridge(llm.driver, queue=2, observer=Observer())
    job = Job([1], SamplingParams(max_tokens=1), llm.tokenizer.stream(continuing=True))
    with pytest.raises(UsageError, match="4 answers are asked for at once; this server takes 2"):
        bridge.submit([job] * 4)


def test_a_parser_that_holds_tokens_does_not_keep_a_stream_silent(server: Running) -> None:
    """What looks like a call is held until it is known; the connection shows that it lives."""
    held = Answers(cast(Any, _Slow()), [cast(Any, _Holding())], 1)

    async def parts() -> list[object]:
        return [part async for part in held.parts(0.05)]

    found = asyncio.run(parts())
    assert found.count(None) >= 2
    assert [part[1] for part in found if isinstance(part, tuple)][-1] == ["all"]


class _Slow:
    """Tokens every hundredth of a second, never a pause."""

    async def tokens(self, pause_s: float) -> Any:
        for number in range(20):
            await asyncio.sleep(0.01)
            request = SimpleNamespace(stop_checker=SimpleNamespace(stop_string=None), output=[])
            reason = "length" if number == 19 else None
            yield 0, SimpleNamespace(text="x", request=request, finish_reason=reason, sample=None)


class _Holding:
    def push(self, text: str) -> list[str]:
        return []

    def finish(self, *, cut: bool) -> list[str]:
        return ["all"]
