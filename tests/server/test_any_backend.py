"""A server answers the same over a backend whose memory is not the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata import LLM, SamplingParams
from support.running import NAMES, load, running

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")


def test_answers_are_those_of_the_native_backend(smollm2_path: Path, llm: LLM) -> None:
    with load(smollm2_path, backend="copying") as served, running(served) as server:
        assert served.engine.runner.backend.name == "copying"
        prompt = "The sea is deep and the sky is wide. " * 12
        for temperature in (0.0, 0.9):
            body = {
                "model": NAMES[0],
                "prompt": prompt,
                "max_tokens": 12,
                "temperature": temperature,
                "seed": 5,
            }
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()
            params = SamplingParams(max_tokens=12, temperature=temperature, seed=5)
            assert answer["choices"][0]["text"] == llm.generate(prompt, params).text
        server.wait_until_free()
