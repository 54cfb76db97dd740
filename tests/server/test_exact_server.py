"""The bits of answers do not depend on company, memory, what is known already, or a restart."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from strata import LLM, SamplingParams
from support.fixed_machine import know_a_machine
from support.running import load, metric, serving, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
pytestmark = pytest.mark.slow

CLIENTS = 16
TIMEOUT_S = 900.0
"""Of a request that waits for others while nearly all weights are read in each step."""

BUDGETS = {"resident": "1GB", "streamed": "235MB"}
"""Of memory; the second holds few of the weights."""

# KV for hardly more than a whole context, and answers that grow over several blocks: some of all
# have to give way. How many depends on when they come: in two runs together some do.
OPTIONS = ("--alias", "model", "--context", "1024", "--parallel", "16", "--kv-memory", "26MB")


def requests() -> list[dict[str, Any]]:
    """Prompts of many lengths, of which some begin alike; answers of many lengths."""
    draw = random.Random(3)
    shared = [draw.randrange(1000, 40000) for _ in range(200)]
    found = []
    for seed in range(24):
        own = [draw.randrange(1000, 40000) for _ in range(draw.choice((3, 40, 150, 300)))]
        found.append(
            {
                "model": "model",
                "prompt": [*shared[: draw.choice((0, 64, 130, 200))], *own],
                "max_tokens": draw.choice((5, 30, 200)),
                "temperature": draw.choice((0.0, 0.8)),
                "seed": seed,
                "logprobs": 1,
                "ignore_eos": True,
            }
        )
    return found


def alone(llm: LLM, body: dict[str, Any]) -> list[float]:
    names = ("max_tokens", "temperature", "seed", "logprobs", "ignore_eos")
    output = llm.generate(body["prompt"], SamplingParams(**{name: body[name] for name in names}))
    assert output.logprobs is not None
    return [sample.logprob for sample in output.logprobs]


async def together(url: str, bodies: list[dict[str, Any]]) -> list[list[float]]:
    """Log-probabilities of the answers, half of them streamed, to sixteen clients at a time."""
    places = asyncio.Semaphore(CLIENTS)
    draw = random.Random(4)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:

        async def ask(body: dict[str, Any]) -> list[float]:
            async with places:
                await asyncio.sleep(draw.random() / 5)
                if body["seed"] % 2:
                    answer = await http.post("/v1/completions", json=body)
                    return list(answer.json()["choices"][0]["logprobs"]["token_logprobs"])
                found = []
                streamed = {**body, "stream": True}
                async with http.stream("POST", "/v1/completions", json=streamed) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            logprobs = json.loads(line[6:])["choices"][0]["logprobs"]
                            found += logprobs["token_logprobs"] if logprobs else []
                return found

        return await asyncio.gather(*(ask(body) for body in bodies))


@pytest.mark.parametrize("weights", BUDGETS)
def test_a_crowd_gets_what_each_would_get_alone(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    know_a_machine(monkeypatch, tmp_path / "home", smollm2_path)
    bodies = requests()
    with load(smollm2_path) as llm:
        expected = [alone(llm, body) for body in bodies]
    options = (*OPTIONS, "--memory", BUDGETS[weights], "--kv-store", str(tmp_path / "kv"))
    hits, gave_way = [], 0.0
    for _ in range(2):
        with serving(smollm2_path, *options) as (process, url):
            assert asyncio.run(together(url, bodies)) == expected
            gave_way += metric(url, "strata_preemptions_total")
            assert (metric(url, "strata_streamed_bytes_total") > 0) == (weights == "streamed")
            hits.append(metric(url, "strata_prefix_hit_tokens_total"))
            wait_for(lambda url=url: metric(url, "strata_kv_blocks_used") == 0)
            process.terminate()
            assert process.wait(30) == 0
    # What the first process kept the second one found.
    assert hits[1] > hits[0] > 0
    assert gave_way > 0
