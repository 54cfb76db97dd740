"""Where one grammar at a time may be in use, each request finds the place free that is sent after
the answer to the one before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.server import service
from support.running import NAMES, Running, load, running

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")


@pytest.fixture(scope="module")
def narrow(smollm2_path: Path) -> Iterator[Running]:
    with load(smollm2_path, parallel=1) as llm, running(llm) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_the_next_one_finds_room_at_once(
    narrow: Running, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody waits: what is in use is told.
    monkeypatch.setattr(service, "_GRAMMAR_WAIT_S", -1.0)
    with httpx.Client(base_url=narrow.url, timeout=60) as client:
        for number in range(6):
            body: dict[str, Any] = {
                "model": NAMES[0],
                "prompt": "x",
                "regex": f"{number}{{3}}",
                "max_tokens": 8,
                "stream": stream,
            }
            text = ""
            with client.stream("POST", "/v1/completions", json=body) as answer:
                for line in answer.iter_lines():
                    text += line
                    if line == "data: [DONE]":
                        break
            assert answer.status_code == 200, text
            assert f"{number}" in text
    narrow.wait_until_free()
