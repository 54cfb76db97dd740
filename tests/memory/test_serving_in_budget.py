"""A server in a memory control group of its budget: whatever is asked, it lives and keeps it."""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cgroups import group, why_not

pytest.importorskip("fastapi", reason="the extra strata[server] is not installed")

REASON = why_not()
CHAT: dict[str, Any] = {
    "model": "it",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 8,
}
ENGLISH = "The quick brown fox doesn't jump. "
SCHEMA = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(100)}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
PATH = "/v1/chat/completions"

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (PATH, {**CHAT, "response_format": FORMAT}),
    (PATH, {**CHAT, "ignored": "a" * 3_300_000}),
    (PATH, {**CHAT, "ignored": "a" * 8_000_000}),
    (PATH, {**CHAT, "ignored": "\U0001f642" * 250_000}),
    (PATH, {**CHAT, "ignored": [[]] * 15_000}),
    (PATH, {**CHAT, "ignored": [[]] * 2_000_000}),
    (PATH, {**CHAT, "messages": [1] * 30_000}),
    (PATH, {**CHAT, "messages": CHAT["messages"] * 4_000}),
    (PATH, {**CHAT, "logit_bias": {str(n): 1 for n in range(4_000)}, "stop": ["a" * 1000] * 64}),
    ("/tokenize", {"content": ENGLISH * 4_000}),
    ("/tokenize", {"content": ENGLISH.upper() * 4_000}),
    ("/tokenize", {"content": "今天天气很好，我们去公园散步吧。" * 7_000}),
    ("/tokenize", {"content": "1" * 160_000}),
    ("/tokenize", {"content": "A" * 100_000}),
    ("/tokenize", {"content": "\U0001f642" * 25_000}),
    ("/v1/completions", {"model": "it", "prompt": ENGLISH * 12_000}),
    ("/v1/completions", {"model": "it", "prompt": "word " * 1_900, "max_tokens": 8}),
]


def ask(url: str, path: str, body: bytes, answers: list[int | str]) -> None:
    request = urllib.request.Request(url + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
            answers.append(answer.status)
    except urllib.error.HTTPError as error:
        answers.append(error.code)
    except OSError as error:
        # It was refused, and the connection closed, before all of it was sent.
        answers.append(type(error).__name__)


@pytest.mark.slow
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("megabytes", [300, 360])
def test_eight_clients_at_the_bounds(smollm2_path: Path, megabytes: int) -> None:
    sizes = ("--memory", f"{megabytes}MB", "--context", "2048", "--parallel", "2")
    command = [sys.executable, "-m", "strata", "serve", str(smollm2_path), "--alias", "it"]
    with group(megabytes * 10**6) as made:
        process = made.start([*command, "--port", "0", "--threads", "2", *sizes])
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline()]
            while lines[-1] and not lines[-1].startswith("listening at http://"):
                lines.append(process.stderr.readline())
            assert lines[-1], lines
            url = lines[-1].split()[2]
            for path, body in REQUESTS:
                data = json.dumps(body, ensure_ascii=False).encode()
                answers: list[int | str] = []
                clients = [
                    threading.Thread(target=ask, args=(url, path, data, answers)) for _ in range(8)
                ]
                for client in clients:
                    client.start()
                for client in clients:
                    client.join()
                assert process.poll() is None, f"killed by {path} of {len(data)} bytes"
                known = {200, 400, 413, 429, 503, "URLError", "ConnectionResetError"}
                assert set(answers) <= known, (path, len(data), answers)
            peak = vm_peak(process.pid)
            # What is asked last is served as ever.
            answers = []
            ask(url, PATH, json.dumps(CHAT).encode(), answers)
            assert answers == [200]
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert peak <= megabytes * 10**6


def vm_peak(pid: int) -> int:
    """The most bytes that were ever resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
