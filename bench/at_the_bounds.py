"""Requests as large as the bounds of a server allow, and larger; and who sends them by eight."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

CHAT: dict[str, Any] = {
    "model": "it",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 8,
}
_ENGLISH = "The quick brown fox doesn't jump. "
_SCHEMA = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(100)}}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}
PATH = "/v1/chat/completions"

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (PATH, {**CHAT, "response_format": _FORMAT}),
    (PATH, {**CHAT, "ignored": "a" * 3_300_000}),
    (PATH, {**CHAT, "ignored": "a" * 8_000_000}),
    (PATH, {**CHAT, "ignored": "\U0001f642" * 250_000}),
    (PATH, {**CHAT, "ignored": [[]] * 15_000}),
    (PATH, {**CHAT, "ignored": [[]] * 2_000_000}),
    (PATH, {**CHAT, "messages": [1] * 30_000}),
    (PATH, {**CHAT, "messages": CHAT["messages"] * 4_000}),
    (PATH, {**CHAT, "logit_bias": {str(n): 1 for n in range(4_000)}, "stop": ["a" * 1000] * 64}),
    ("/tokenize", {"content": _ENGLISH * 4_000}),
    ("/tokenize", {"content": _ENGLISH.upper() * 4_000}),
    ("/tokenize", {"content": "今天天气很好，我们去公园散步吧。" * 7_000}),
    ("/tokenize", {"content": "1" * 160_000}),
    ("/tokenize", {"content": "A" * 100_000}),
    ("/tokenize", {"content": "\U0001f642" * 25_000}),
    ("/v1/completions", {"model": "it", "prompt": _ENGLISH * 12_000}),
    ("/v1/completions", {"model": "it", "prompt": "word " * 1_900, "max_tokens": 8}),
]
LAST = (PATH, CHAT)
"""What is still answered at the end."""

_TEXTS = {"query": "what is a panda", "documents": ["a lazy dog"] * 200}
OF_TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/rerank", {"model": "it", "query": "what is a panda", "documents": ["a lazy dog"]}),
    ("/v1/rerank", {"model": "it", **_TEXTS}),
    ("/v1/rerank", {"model": "it", **_TEXTS, "documents": ["a"] * 2_000}),
    ("/v1/rerank", {"model": "it", **_TEXTS, "documents": ["fox " * 20_000] * 8}),
    ("/v1/rerank", {"model": "it", **_TEXTS, "query": "fox " * 400_000}),
    ("/v1/embeddings", {"model": "it", "input": ["a lazy dog"] * 2_000}),
    ("/v1/embeddings", {"model": "it", "input": "\U0001f642" * 250_000}),
    ("/v1/embeddings", {"model": "it", "input": [[1] * 200] * 100}),
    ("/tokenize", {"content": _ENGLISH * 4_000}),
    ("/tokenize", {"content": "A" * 100_000}),
]
"""The same of a server whose model embeds or ranks; the first is answered."""

ANSWERS = frozenset({200, 400, 413, 429, 503, "URLError", "ConnectionResetError"})
"""What they may end in: an answer, a refusal by its name, or a connection that is closed before all
of a body was sent that is refused."""


def ask(url: str, path: str, body: bytes) -> int | str:
    """The status of a request, or the name of how its connection ended."""
    request = urllib.request.Request(url + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError as error:
        return type(error).__name__


def ask_together(url: str, path: str, body: bytes, clients: int = 8) -> list[int | str]:
    """The endings of the same request by several clients at once."""
    answers: list[int | str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(url, path, body)))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def encoded(body: dict[str, Any]) -> bytes:
    """A body as its client sends it."""
    return json.dumps(body, ensure_ascii=False).encode()
