"""A conversation over HTTP with a model of recurrent layers: each turn computes what is new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK
from support.running import load, running

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

TURNS, ASKED, ANSWERED = 10, 14, 9


@pytest.mark.parametrize("name", ["qwen35", "mamba2", "granite_hybrid"])
def test_ten_turns_compute_only_what_is_new(name: str, tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(name))
    alone = LLM(path, threads=1, context=256)
    params = SamplingParams(max_tokens=ANSWERED, ignore_eos=True)
    with alone, load(path, context=256) as served, running(served) as server:
        history: list[int] = []
        for turn in range(TURNS):
            known = max(0, len(history) - 1) // KV_BLOCK * KV_BLOCK
            history += np.random.default_rng(turn).integers(0, 250, ASKED).tolist()
            before = server.service.bridge.status.tokens
            body = {
                "model": "smollm2",
                "prompt": history,
                "max_tokens": ANSWERED,
                "ignore_eos": True,
                "temperature": 0,
            }
            answered = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
            assert answered.status_code == 200, answered.text
            reply = answered.json()
            server.wait_until_free()
            usage = reply["usage"]
            assert usage["prompt_tokens"] == len(history)
            assert usage["prompt_tokens_details"]["cached_tokens"] == known
            computed = server.service.bridge.status.tokens - before
            assert computed == len(history) - known + ANSWERED - 1
            alone.engine.forget_prefixes()
            answer = alone.generate(history, params)
            assert reply["choices"][0]["text"] == answer.text
            history += answer.token_ids
        assert len(history) > 3 * KV_BLOCK
