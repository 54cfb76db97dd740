"""Models with a state of fixed size, end to end: what a conversation computes, and its bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import make_tiny_hybrids
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
# One family of each further recurrence: Kimi's delta rule, linear attention, RWKV's of two kinds.
FURTHER = ["kimi-linear", "minimax-01", "rwkv6", "rwkv7"]
PARAMS = SamplingParams(max_tokens=9, logprobs=2, ignore_eos=True)
TURNS, ASKED = 10, 14
CONTEXT = 256


def question(turn: int, vocabulary: int = 250) -> list[int]:
    found: list[int] = np.random.default_rng(turn).integers(0, vocabulary, ASKED).tolist()
    return found


def write(name: str, folder: Path) -> tuple[Path, int]:
    """A tiny model's file or directory, and how many tokens it has."""
    if name in FURTHER:
        path = make_tiny_hybrids.write(folder / "m.gguf", name, "llama")
        return path, make_tiny_hybrids.VOCABULARY
    return make_tiny_models.write_directory(folder / "m", make_tiny_models.golden(name)), 250


@pytest.mark.parametrize("name", [*NAMES, *FURTHER])
def test_a_conversation_computes_only_what_is_new(name: str, tmp_path: Path) -> None:
    """Of each turn but what lies behind the last whole block; every answer has the bits of one
    that computes everything, whatever is found in memory or, after a restart, on disk."""
    path, vocabulary = write(name, tmp_path)
    history: list[int] = []
    answers = []
    # Guesses that are wrong are computed, too.
    with LLM(path, threads=2, context=CONTEXT, kv_store=tmp_path / "kv", draft="off") as llm:
        for turn in range(TURNS):
            before = len(history)
            history += question(turn, vocabulary)
            computed = llm.engine.status().tokens
            output = llm.generate(history, PARAMS)
            # The last token of an answer is chosen and never computed.
            known = max(0, before - 1) // KV_BLOCK * KV_BLOCK
            assert output.cached_tokens == known
            computed = llm.engine.status().tokens - computed
            assert computed == len(history) - known + PARAMS.max_tokens - 1
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


@pytest.mark.parametrize("name", [*NAMES, *FURTHER])
def test_together_and_in_little_room_answers_are_those_alone(name: str, tmp_path: Path) -> None:
    path, vocabulary = write(name, tmp_path)
    prompts = [question(i, vocabulary) * (1 + i % 7) for i in range(9)]
    with LLM(path, threads=1, context=CONTEXT) as llm:
        alone = []
        for prompt in prompts:
            llm.engine.forget_prefixes()
            alone.append(llm.generate(prompt, PARAMS))
    with LLM(path, threads=3, context=CONTEXT, parallel=4) as llm:
        together = llm.generate(prompts, PARAMS)
    for one, other in zip(alone, together, strict=True):
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)


@pytest.mark.parametrize("name", [*NAMES, *FURTHER])
def test_streamed_weights_give_the_same_bits(name: str, tmp_path: Path) -> None:
    path, vocabulary = write(name, tmp_path)
    outputs = []
    for streams, threads in ((False, 1), (True, 2), (True, 4)):
        with open_model(path) as file:
            model = build_model(file, CONTEXT)
            layers = [s for s in model.segments if s.name.startswith("layer")]
            # These files' experts are too narrow to be streamed.
            found = [u.name for s in layers for u in s.units if not u.name.endswith("experts")]
            units = frozenset(found) if streams else frozenset()
            settings = BackendSettings(streamed=units, ring_bytes=1 << 20, tile_bytes=1 << 16)
            backend = backend_class("cpu").create(threads, None, settings, NoBooks())
            engine = Engine(Runner(backend, model, WeightSource(file)), context=CONTEXT)
            request = engine.submit(question(0, vocabulary) * 6, PARAMS)
            while engine.busy:
                engine.step()
            outputs.append(request.output)
            engine.close()
            backend.close()
    assert outputs[0] == outputs[1] == outputs[2]


def runner_of(name: str, folder: Path) -> tuple[Runner, int, Callable[[], None]]:
    path, vocabulary = write(name, folder)
    file = open_model(path)
    backend = backend_class("cpu").create(2, None, BackendSettings(), NoBooks())
    runner = Runner(backend, build_model(file, CONTEXT), WeightSource(file))
    return runner, vocabulary, file.close


@pytest.mark.parametrize("name", ["mamba2", "qwen35", *FURTHER])
def test_each_step_of_a_conversation_computes_what_is_new(name: str, tmp_path: Path) -> None:
    """What is behind the last snapshot, in steps that end where the next one is taken; then a token
    a step."""
    runner, vocabulary, close = runner_of(name, tmp_path)
    engine = Engine(runner, context=CONTEXT)
    history: list[int] = []
    for turn in range(TURNS):
        known = max(0, len(history) - 1) // KV_BLOCK * KV_BLOCK
        history += question(turn, vocabulary)
        request = engine.submit(history, PARAMS)
        steps = []
        while engine.busy:
            engine.step()
            last = engine.status().last
            assert last is not None
            steps.append(last.tokens)
        # The last row is always computed: its logits are wanted.
        border = max(known, (len(history) - 1) // KV_BLOCK * KV_BLOCK)
        prompt = [rows for rows in (border - known, len(history) - border) if rows]
        assert steps == [*prompt, *[1] * (PARAMS.max_tokens - 1)]
        history += [sample.token for sample in request.output]
    engine.close()
    close()
