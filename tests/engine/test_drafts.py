"""Answers with tokens guessed ahead are those without, to the bit: tokens and log-probabilities.

For every family, and for a model that keeps every kind of state; greedy and sampled; alone and
together; guesses that are right, wrong and both; cancelled and preempted on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_hybrids
import make_tiny_models
from strata.backends.base import KV_BLOCK, NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.decode import Draft, Sample, SamplingParams
from strata.engine import Engine, KVSettings, Runner
from strata.engine.drafting import Drafting
from strata.errors import UsageError
from strata.formats import open_model
from strata.models import build_model
from support.fake_model import fake_engine
from support.hybrid_model import STATE, hybrid_model
from support.proposers import Oracle

GREEDY = SamplingParams(max_tokens=24, logprobs=3, ignore_eos=True)
SAMPLED = SamplingParams(
    max_tokens=24,
    logprobs=3,
    ignore_eos=True,
    temperature=0.9,
    top_p=0.95,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    seed=7,
)

Known = dict[tuple[int, ...], list[Sample]]


def prompts(vocabulary: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    random = np.random.default_rng(5)
    return [tuple(random.integers(0, vocabulary, n).tolist()) for n in lengths]


def answers(runner: Runner, context: int, asked: Sequence[tuple[int, ...]], p: Any) -> Known:
    """Each prompt alone, token by token."""
    out = {}
    for prompt in asked:
        engine = Engine(runner, context=context, kv=KVSettings(prefix_cache=False))
        request = engine.submit(prompt, p)
        while engine.busy:
            engine.step()
        out[prompt] = request.output
    return out


def oracle(known: Known, right: float, vocabulary: int) -> Oracle:
    def follow(tokens: Sequence[int]) -> list[int]:
        for prompt, output in known.items():
            whole = [*prompt, *(s.token for s in output)]
            if len(tokens) >= len(prompt) and whole[: len(tokens)] == list(tokens):
                return whole[len(tokens) :]
        return []

    return Oracle(follow, right, vocabulary=vocabulary)


def drafting(known: Known, right: float, vocabulary: int) -> Drafting:
    return Drafting(oracle(known, right, vocabulary), most=8)


def check(
    runner: Runner,
    context: int,
    known: Known,
    p: SamplingParams,
    *,
    right: float,
    parallel: int,
    kv: KVSettings | None = None,
) -> Engine:
    vocabulary = runner.model.vocab_size
    engine = Engine(
        runner,
        context=context,
        parallel=parallel,
        token_budget=64,
        kv=kv,
        drafting=Drafting(oracle(known, right, vocabulary), most=6),
    )
    requests = [engine.submit(prompt, p) for prompt in known]
    while engine.busy:
        engine.step()
        engine.check_integrity()
    for request, output in zip(requests, known.values(), strict=True):
        # Equality of floats, which are never NaN here: the bits.
        assert request.output == output
    return engine


def runner_of(path: Path, context: int | None) -> tuple[Runner, Callable[[], None]]:
    file = open_model(path)
    backend = backend_class("cpu").create(2, None, BackendSettings(), NoBooks())
    runner = Runner(backend, build_model(file, context), WeightSource(file))
    return runner, file.close


@pytest.mark.parametrize("name", make_tiny_models.names())
def test_every_family(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    runner, close = runner_of(make_tiny_models.write_directory(tmp_path, golden), golden.context)
    context = min(runner.model.context_length, 128)
    asked = prompts(runner.model.vocab_size, [min(40, context - 30), 9, 3])
    try:
        for p, right in ((GREEDY, 0.7), (SAMPLED, 0.9)):
            known = answers(runner, context, asked, p)
            status = check(runner, context, known, p, right=right, parallel=3).status()
            assert 0 < status.draft_tokens_kept < status.draft_tokens
    finally:
        close()


def test_guesses_leave_the_state_at_the_end_of_a_block(tmp_path: Path) -> None:
    """Where it is found again: a conversation goes on from there though an answer was guessed."""
    runner, close = runner_of(make_tiny_hybrids.write(tmp_path / "m.gguf", "rwkv7"), 192)
    (prompt,) = prompts(runner.model.vocab_size, [53])
    try:
        known = answers(runner, 192, [prompt], GREEDY)
        engine = check(runner, 192, known, GREEDY, right=1.0, parallel=1)
        assert engine.status().draft_tokens_kept > 0
        turn = [*prompt, *(s.token for s in known[prompt]), 3]
        request = engine.submit(turn, GREEDY)
        while engine.busy:
            engine.step()
        assert request.cached_tokens == KV_BLOCK < len(turn)
    finally:
        close()


@pytest.mark.parametrize("name", ["kimi-linear", "minimax-01", "rwkv6", "rwkv7"])
def test_further_recurrences(name: str, tmp_path: Path) -> None:
    """Rolled back among others, and where some have to give way."""
    runner, close = runner_of(make_tiny_hybrids.write(tmp_path / "m.gguf", name), 192)
    asked = prompts(runner.model.vocab_size, [120, 61, 62, 63])
    try:
        known = answers(runner, 192, asked, GREEDY)
        status = check(runner, 192, known, GREEDY, right=0.7, parallel=3).status()
        assert 0 < status.draft_tokens_kept < status.draft_tokens
        # Three fit by their blocks of keys, or by their slots of state.
        mixed = len(runner.model.groups) > 1
        slots = 12 if mixed else 7
        blocks = tuple(slots if group.recurrent else 6 for group in runner.model.groups)
        kv = KVSettings(blocks=blocks)
        status = check(runner, 192, known, GREEDY, right=0.8, parallel=4, kv=kv).status()
        assert status.draft_tokens_kept > 0
        assert status.preemptions > 0 or not mixed
    finally:
        close()


@pytest.fixture(scope="module")
def hybrid() -> Runner:
    model, weights = hybrid_model(STATE)
    backend = backend_class("cpu").create(2, None, BackendSettings(), NoBooks())
    return Runner(backend, model, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_every_kind_of_state(hybrid: Runner, right: float) -> None:
    asked = prompts(hybrid.model.vocab_size, [200, 61, 5, 130])
    known = answers(hybrid, 256, asked, GREEDY)
    status = check(hybrid, 256, known, GREEDY, right=right, parallel=4).status()
    assert status.draft_tokens > 0
    assert right == 0 or status.draft_tokens_kept > 0


@pytest.mark.parametrize("paged", [True, False])
def test_who_gives_way_in_the_middle_goes_on_with_the_same_bits(paged: bool) -> None:
    state = [layer for layer in STATE[2:5] if paged] or STATE
    model, weights = hybrid_model([*STATE[:1], *state] if paged else state)
    backend = backend_class("cpu").create(2, None, BackendSettings(), NoBooks())
    runner = Runner(backend, model, weights)  # type: ignore[arg-type]
    asked = prompts(model.vocab_size, [120, 61, 62, 63])
    known = answers(runner, 192, asked, GREEDY)
    blocks = tuple(12 if group.recurrent else 6 for group in model.groups)
    engine = check(runner, 192, known, GREEDY, right=0.8, parallel=4, kv=KVSettings(blocks=blocks))
    status = engine.status()
    assert status.preemptions > 0
    assert status.draft_tokens_kept > 0


def test_a_request_that_is_cancelled_between_drafts_leaves_the_others_as_they_are(
    hybrid: Runner,
) -> None:
    vocabulary = hybrid.model.vocab_size
    asked = prompts(vocabulary, [70, 40, 20])
    known = answers(hybrid, 256, asked, GREEDY)
    for when in range(1, 8):
        engine = Engine(hybrid, context=256, parallel=3, drafting=drafting(known, 0.7, vocabulary))
        requests = [engine.submit(prompt, GREEDY) for prompt in known]
        for _ in range(when):
            engine.step()
        engine.cancel(requests[1])
        engine.check_integrity()
        again = engine.submit(asked[1], GREEDY)
        while engine.busy:
            engine.step()
            engine.check_integrity()
        assert requests[0].output == known[asked[0]]
        assert requests[2].output == known[asked[2]]
        assert again.output == known[asked[1]]
        assert requests[1].output == known[asked[1]][: len(requests[1].output)]


def test_an_answer_ends_where_it_would_without_drafts(hybrid: Runner) -> None:
    """At its limit and at an end token, also in the middle of what was guessed right."""
    (prompt,) = prompts(hybrid.model.vocab_size, [30])
    known = answers(hybrid, 256, [prompt], GREEDY)
    tokens = [s.token for s in known[prompt]]
    for limit in (1, 2, 5):
        p = SamplingParams(max_tokens=limit, ignore_eos=True)
        engine = Engine(hybrid, context=256, drafting=drafting(known, 1.0, hybrid.model.vocab_size))
        request = engine.submit(prompt, p)
        while engine.busy:
            engine.step()
        assert [s.token for s in request.output] == tokens[:limit]
        assert request.finish_reason == "length"
    end = tokens[7]
    engine = Engine(
        hybrid,
        context=256,
        stop_ids=frozenset([end]),
        drafting=drafting(known, 1.0, hybrid.model.vocab_size),
    )
    request = engine.submit(prompt, SamplingParams(max_tokens=24))
    while engine.busy:
        engine.step()
    engine.check_integrity()
    assert [s.token for s in request.output] == tokens[: tokens.index(end) + 1]
    assert request.finish_reason == "stop"


def test_fewer_sweeps_where_guesses_are_right() -> None:
    model, weights = hybrid_model(STATE[:1])
    backend = backend_class("cpu").create(1, None, BackendSettings(), NoBooks())
    runner = Runner(backend, model, weights)  # type: ignore[arg-type]
    known = answers(runner, 256, prompts(model.vocab_size, [30]), GREEDY)
    proposer = oracle(known, 1.0, model.vocab_size)
    proposer.trees = False
    engine = Engine(runner, context=256, drafting=Drafting(proposer, most=7))
    engine.submit(next(iter(known)), GREEDY)
    while engine.busy:
        engine.step()
    assert engine.status().sweeps < 12


def test_drafts_that_make_no_sense_are_refused() -> None:
    for tokens, parents in (((1, 2), (0, -1)), ((1, 2), (-1,)), ((1, 1), (-1, -1)), ((1,), (-2,))):
        with pytest.raises(UsageError, match="draft"):
            Draft(tokens, parents)


def test_no_more_is_guessed_than_an_answer_may_have() -> None:
    """Guesses behind its last token would want blocks behind the context."""
    asked: list[int] = []

    class Asked:
        def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
            asked.append(most)
            assert len(tokens) + most < 128
            return Draft((0,) * most)

        def end(self, id: int, tokens: Sequence[int]) -> None:
            pass

    engine = fake_engine(context=128, drafting=Drafting(Asked(), most=4))
    engine.submit([1] * 120, SamplingParams(ignore_eos=True))
    while engine.busy:
        engine.step()
    assert asked
    assert max(asked) == 4
    assert min(asked) == 1
