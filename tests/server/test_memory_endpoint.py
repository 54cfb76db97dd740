"""Another budget for a server that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.running import NAMES, Running, load, running
from support.weighing import settled_bytes

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

MB = 10**6


@pytest.fixture(scope="module")
def taken() -> int:
    """Bytes that this process takes before: as much as the tests before left."""
    return settled_bytes()


@pytest.fixture(scope="module")
def limited(smollm2_path: Path, taken: int) -> Iterator[Running]:
    with load(smollm2_path, memory=taken + 500 * MB, serving=True) as llm, running(llm) as server:
        yield server


def answer(server: Running) -> Any:
    ask = {"model": NAMES[0], "prompt": "The sky is", "max_tokens": 6, "temperature": 0}
    reply = httpx.post(f"{server.url}/v1/completions", json=ask, timeout=60)
    return reply.json()["choices"][0]["text"]


def test_a_budget_is_told_and_changed(limited: Running, taken: int) -> None:
    url = f"{limited.url}/memory"
    want, first = answer(limited), httpx.get(url).json()
    assert first["budget"] == taken + 500 * MB
    assert sum(first["owned"].values()) <= first["budget"]
    refused = httpx.post(url, json={"memory": "1MB"}, timeout=60)
    assert refused.status_code == 400
    assert "it needs" in refused.json()["error"]["message"]
    assert httpx.get(url).json()["owned"] == first["owned"]
    for wrong in ({"memory": "much"}, {"memory": 0}, {}, {"memory": [1]}):
        assert httpx.post(url, json=wrong).status_code in (400, 422)
    for budget in (taken + 300 * MB, f"{taken // MB + 450}MB"):
        changed = httpx.post(url, json={"memory": budget}, timeout=60)
        assert changed.status_code == 200
        assert changed.json()["budget"] < first["budget"]
        assert sum(changed.json()["owned"].values()) <= changed.json()["budget"]
        assert answer(limited) == want
