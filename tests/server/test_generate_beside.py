"""``generate()`` of an LLM that a server has: one engine for both, and everybody's own bits."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from strata import LLM, SamplingParams, StrataError, UsageError
from support.running import NAMES, Running, load, running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

TOKENS = 24
# More than run together, some with a common beginning, some sampled.
CASES = [
    (f"{start} {word} is a word that", seed)
    for seed, (start, word) in enumerate(
        (start, word) for start in ("The", "Once more, the") for word in ("one", "two", "three")
    )
]


def params(seed: int, tokens: int = TOKENS) -> SamplingParams:
    temperature = 0.8 if seed % 2 else 0.0
    return SamplingParams(
        max_tokens=tokens, temperature=temperature, seed=seed, logprobs=0, ignore_eos=True
    )


def generated(llm: LLM, prompt: str, seed: int) -> list[float]:
    output = llm.generate(prompt, params(seed))
    assert output.logprobs is not None
    return [sample.logprob for sample in output.logprobs if sample.logprob is not None]


def asked(server: Running, prompt: str, seed: int) -> list[float]:
    """The same of the server."""
    body: dict[str, Any] = {
        "model": NAMES[0],
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0.8 if seed % 2 else 0.0,
        "seed": seed,
        "logprobs": 0,
        "ignore_eos": True,
    }
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()
    return list(answer["choices"][0]["logprobs"]["token_logprobs"])


def test_both_give_what_each_would_give_alone(server: Running, llm: LLM) -> None:
    expected = [generated(llm, *case) for case in CASES]
    served = server.service.llm
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        mine = [pool.submit(generated, served, *case) for case in CASES]
        theirs = [pool.submit(asked, server, *case) for case in CASES]
        assert [call.result(120) for call in mine] == expected
        assert [call.result(120) for call in theirs] == expected


def test_who_leaves_on_either_side_disturbs_nobody(server: Running, llm: LLM) -> None:
    expected = [generated(llm, *case) for case in CASES]
    served, bridge = server.service.llm, server.service.bridge
    left = served.generate("A story without an end:", params(0, 800), stream=True)
    next(left)
    body = {"model": NAMES[0], "prompt": "Another:", "max_tokens": 800, "ignore_eos": True}
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**body, "stream": True}, timeout=120
        ) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            json.loads(next(lines).removeprefix("data: "))
            mine = [pool.submit(generated, served, *case) for case in CASES]
            theirs = [pool.submit(asked, server, *case) for case in CASES]
            wait_for(lambda: bridge.status.running == 4)
            left.close()  # type: ignore[attr-defined]
        assert [call.result(120) for call in mine] == expected
        assert [call.result(120) for call in theirs] == expected


def test_perplexity_and_measurements_beside_a_server(server: Running, llm: LLM) -> None:
    text = "The cat sat on the mat and looked out of the window at the birds. " * 3
    expected = [generated(llm, *case) for case in CASES]
    perplexity = llm.perplexity(text, context=32)
    served = server.service.llm
    with ThreadPoolExecutor(len(CASES)) as pool:
        theirs = [pool.submit(asked, server, *case) for case in CASES]
        wait_for(lambda: server.service.bridge.status.running > 1)
        assert served.perplexity(text, context=32) == perplexity
        assert served.measure(prompt=20, gen=4, repeat=1).decode_tok_s is not None
        assert [call.result(120) for call in theirs] == expected


def test_closing_the_llm_ends_both_sides(smollm2_path: Path) -> None:
    with load(smollm2_path) as served, running(served) as server, ThreadPoolExecutor(4) as pool:
        body = {"model": NAMES[0], "prompt": "A story:", "max_tokens": 900, "ignore_eos": True}
        url = f"{server.url}/v1/completions"
        mine = [pool.submit(served.generate, "Another story:", params(n, 900)) for n in range(2)]
        theirs = [pool.submit(httpx.post, url, json=body, timeout=120) for _ in range(2)]
        wait_for(lambda: server.service.bridge.status.running == 4)
        served.close()
        for call in mine:
            with pytest.raises(UsageError, match="closed"):
                call.result(60)
        for answer in theirs:
            assert "closed" in answer.result(60).json()["error"]["message"]
        with pytest.raises(StrataError, match="closed"):
            served.generate("a")
