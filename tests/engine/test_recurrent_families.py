"""Models with a state of fixed size, end to end: what a conversation computes, and its bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK, NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.engine import Engine, Runner
from strata.formats import open_model
from strata.models import build_model

NAMES = ["mamba", "mamba2", "granite_hybrid", "jamba", "lfm2", "nemotron_h", "qwen35"]
PARAMS = SamplingParams(max_tokens=9, logprobs=2, ignore_eos=True)
TURNS, ASKED = 10, 14
CONTEXT = 256


def question(turn: int) -> list[int]:
    found: list[int] = np.random.default_rng(turn).integers(0, 250, ASKED).tolist()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_computes_only_what_is_new(name: str, tmp_path: Path) -> None:
    """Of each turn but what lies behind the last whole block; every answer has the bits of one
    that computes everything, whatever is found in memory or, after a restart, on disk."""
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(name))
    history: list[int] = []
    answers = []
    with LLM(path, threads=2, context=CONTEXT, kv_store=tmp_path / "kv") as llm:
        for turn in range(TURNS):
            before = len(history)
            history += question(turn)
            output = llm.generate(history, PARAMS)
            # The last token of an answer is chosen and never computed.
            known = max(0, before - 1) // KV_BLOCK * KV_BLOCK
            assert output.cached_tokens == known
            answers.append((len(history), output))
            history += output.token_ids
    assert len(history) > 3 * KV_BLOCK
    with LLM(path, threads=1, context=CONTEXT) as llm:
        for length, output in answers:
            llm.engine.forget_prefixes()
            again = llm.generate(history[:length], PARAMS)
            assert again.cached_tokens == 0
            assert (again.token_ids, again.logprobs) == (output.token_ids, output.logprobs)
    with LLM(path, threads=3, context=CONTEXT, kv_store=tmp_path / "kv") as llm:
        length, output = answers[-1]
        again = llm.generate(history[:length], PARAMS)
        assert again.cached_tokens >= KV_BLOCK
        assert (again.token_ids, again.logprobs) == (output.token_ids, output.logprobs)


@pytest.mark.parametrize("name", NAMES)
def test_together_and_in_little_room_answers_are_those_alone(name: str, tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(name))
    prompts = [question(i) * (1 + i % 7) for i in range(9)]
    with LLM(path, threads=1, context=CONTEXT) as llm:
        alone = []
        for prompt in prompts:
            llm.engine.forget_prefixes()
            alone.append(llm.generate(prompt, PARAMS))
    with LLM(path, threads=3, context=CONTEXT, parallel=4) as llm:
        together = llm.generate(prompts, PARAMS)
    for one, other in zip(alone, together, strict=True):
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_weights_give_the_same_bits(name: str, tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(name))
    outputs = []
    for streams, threads in ((False, 1), (True, 2), (True, 4)):
        with open_model(path) as file:
            model = build_model(file, CONTEXT)
            layers = [s for s in model.segments if s.name.startswith("layer")]
            units = frozenset(u.name for s in layers for u in s.units) if streams else frozenset()
            settings = BackendSettings(streamed=units, ring_bytes=1 << 20, tile_bytes=1 << 16)
            backend = backend_class("cpu").create(threads, None, settings, NoBooks())
            engine = Engine(Runner(backend, model, WeightSource(file)), context=CONTEXT)
            request = engine.submit(question(0) * 6, PARAMS)
            while engine.busy:
                engine.step()
            outputs.append(request.output)
            engine.close()
            backend.close()
    assert outputs[0] == outputs[1] == outputs[2]
