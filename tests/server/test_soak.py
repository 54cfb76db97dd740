"""Sixteen clients that come, go, stall and ask for too much: nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from running import NAMES, Running, load, running

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident size is Linux's"),
]

CLIENTS = 16
SECONDS = float(os.environ.get("STRATA_SOAK_SECONDS", "30"))
"""Of the soak proper, after as long a warm-up as a fifth of it."""

GROWTH = 16 << 20
"""Bytes by which resident memory may differ: arenas of the allocator, by thread and by size."""


@pytest.fixture(scope="module")
def soaked(smollm2_path: Path) -> Iterator[Running]:
    limits = {"body_bytes": 100_000, "queue": 64}
    with load(smollm2_path, context=512, parallel=8) as served, running(served, **limits) as server:
        yield server


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def client(url: str, draw: random.Random, until: float) -> int:
    """One client's calls; returns how many there were."""
    calls = 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while time.monotonic() < until:
            calls += 1
            body: dict[str, Any] = {
                "model": NAMES[0],
                "prompt": [5] * draw.choice([1, 30, 300]),
                "max_tokens": draw.choice([1, 8, 60]),
                "n": draw.choice([1, 1, 3]),
                "stream": True,
            }
            kind = draw.randrange(6)
            if kind == 0:
                answer = await http.post("/v1/completions", content=b"x" * 200_000)
                assert answer.status_code == 413
            elif kind == 1:
                answer = await http.post("/v1/completions", json={**body, "prompt": [5] * 600})
                assert answer.status_code == 400
            elif kind == 2:
                # Gone before the first token, or in the middle.
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(http.post("/v1/completions", json=body), draw.random())
            else:
                async with http.stream("POST", "/v1/completions", json=body) as answer:
                    assert answer.status_code in (200, 429)
                    async for line in answer.aiter_lines():
                        assert not line.startswith("data: {") or "error" not in json.loads(line[6:])
                        if draw.random() < 0.01:
                            break
    return calls


def soak(server: Running, seconds: float, seed: int) -> int:
    async def all_clients() -> int:
        until = time.monotonic() + seconds
        each = (client(server.url, random.Random(seed + i), until) for i in range(CLIENTS))
        return sum(await asyncio.gather(*each))

    calls = asyncio.run(all_clients())
    server.wait_until_free()
    return calls


def test_nothing_stays_behind(soaked: Running) -> None:
    # The system hands out KV's memory when it is first written: all of it, before the comparison.
    # Prompts that differ, or they would share blocks.
    prompts = [[9 + i] * 500 for i in range(8)]
    full = {"model": NAMES[0], "prompt": prompts, "max_tokens": 12, "ignore_eos": True}
    assert httpx.post(f"{soaked.url}/v1/completions", json=full, timeout=60).status_code == 200
    soak(soaked, SECONDS / 5, 0)
    before = resident_bytes()
    assert soak(soaked, SECONDS, 100) > CLIENTS
    assert resident_bytes() - before < GROWTH
