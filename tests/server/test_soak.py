"""Sixteen clients that come, go, stall and ask for too much: nothing stays behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cgroups import group, why_not
from support.fixed_machine import know_a_machine
from support.running import NAMES, Running, load, metric, running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident size is Linux's"),
]

CLIENTS = 16
SECONDS = float(os.environ.get("STRATA_SOAK_SECONDS", "10"))
"""Of the soak proper; a leak of little a request wants minutes."""

WARM_UP = max(15.0, SECONDS / 5)
"""Seconds before it, until the allocator has seen every size of step."""

BUDGETS = {"streamed": 260_000_000, "resident": 700_000_000}
"""Bytes of a server that has a group of its own: a little more than the least that does, and one in
which all weights stay. They have room in 340 MB; but up to about 600 MB a Plan may find larger
steps, or grammars, worth more than the last few units, by the process's size and the machine."""

GROWTH = 16 << 20
"""Bytes by which resident memory may differ: arenas of the allocator, by thread and by size."""

LEFT = 4 << 20
"""The same once the allocator has given back what it keeps: some 30 MB, after a minute."""


@pytest.fixture(scope="module")
def soaked(smollm2_path: Path) -> Iterator[Running]:
    limits = {"body_bytes": 100_000, "queue": 64}
    with load(smollm2_path, context=512, parallel=8) as served, running(served, **limits) as server:
        yield server


def resident_bytes(process: int | str = "self") -> int:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settled_bytes() -> int:
    """Of this process, without garbage and without what the allocator keeps for later."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return resident_bytes()


async def client(url: str, model: str, draw: random.Random, until: float) -> int:
    """One client's calls; returns how many there were."""
    calls = 0
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while time.monotonic() < until:
            calls += 1
            body: dict[str, Any] = {
                "model": model,
                "prompt": [5] * draw.choice([1, 30, 300]),
                "max_tokens": draw.choice([1, 8, 60]),
                "n": draw.choice([1, 1, 3]),
                "stream": True,
            }
            kind = draw.randrange(6)
            if kind == 0:
                answer = await http.post("/v1/completions", content=b"x" * 200_000)
                # Too large where a body may have less, and no JSON in any case.
                assert answer.status_code in (400, 413)
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


def soak(url: str, model: str, seconds: float, seed: int) -> int:
    async def all_clients() -> int:
        until = time.monotonic() + seconds
        each = (client(url, model, random.Random(seed + i), until) for i in range(CLIENTS))
        return sum(await asyncio.gather(*each))

    return asyncio.run(all_clients())


def touch_all_kv(url: str, model: str) -> None:
    """The system hands out KV's memory when it is first written: all of it, before resident memory
    is compared. Prompts differ, or they would share blocks."""
    prompts = [[9 + i] * 500 for i in range(8)]
    full = {"model": model, "prompt": prompts, "max_tokens": 12, "ignore_eos": True}
    assert httpx.post(f"{url}/v1/completions", json=full, timeout=60).status_code == 200


def test_nothing_stays_behind(soaked: Running) -> None:
    touch_all_kv(soaked.url, NAMES[0])
    soak(soaked.url, NAMES[0], WARM_UP, 0)
    soaked.wait_until_free()
    before = settled_bytes()
    assert soak(soaked.url, NAMES[0], SECONDS, 100) > CLIENTS
    soaked.wait_until_free()
    assert settled_bytes() - before < LEFT


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("weights", BUDGETS)
def test_a_server_in_a_group_of_its_budget(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    know_a_machine(monkeypatch, tmp_path, smollm2_path)
    budget = BUDGETS[weights]
    command = [sys.executable, "-m", "strata", "serve", str(smollm2_path), "--port", "0"]
    command += ["--memory", str(budget), "--parallel", "8", "--context", "512", "--threads", "2"]
    with group(budget) as made:
        server = made.start(command)
        assert server.stderr is not None
        try:
            said = [server.stderr.readline()]
            while "http://" not in said[-1]:
                assert said[-1], f"no server: {said}"
                said.append(server.stderr.readline())
            url = re.findall(r"http://[^ ]+", said[-1])[0]
            model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
            touch_all_kv(url, model)
            soak(url, model, WARM_UP, 0)
            before = resident_bytes(server.pid)
            assert soak(url, model, SECONDS, 100) > CLIENTS
            assert resident_bytes(server.pid) - before < GROWTH
            wait_for(lambda: metric(url, "strata_requests_running") == 0)
            assert metric(url, "strata_kv_blocks_used") == 0
            assert (metric(url, "strata_streamed_bytes_total") > 0) == (weights == "streamed")
            assert server.poll() is None
        finally:
            server.terminate()
            code = server.wait(30)
        assert code == 0
        assert made.peak <= budget
