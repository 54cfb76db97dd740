"""The engine over a fake model: whatever runs together and however it is cut, tokens are equal."""

from __future__ import annotations

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK
from strata.decode import SamplingParams, log_softmax
from strata.engine import Engine, EngineError, QueueFull, Request
from strata.engine.engine import QUEUE_LIMIT
from strata.kv import PoolError
from strata.program import StepSize
from support.fake_model import FakeBackend, expected_tokens, fake_engine, history_hash, logits_of


def finish(engine: Engine) -> None:
    for _ in range(10_000):
        if not engine.busy:
            return
        engine.step()
        engine.check_integrity()
    raise AssertionError("the engine does not come to an end")


def tokens_of(request: Request) -> list[int]:
    return [sample.token for sample in request.output]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 97, length).tolist()


@pytest.mark.parametrize("budget", [1, 2, 7, 64, 512])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_any_chunking_gives_the_same_tokens(budget: int, length: int) -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, token_budget=budget)
    prompt = prompt_of(length)
    request = engine.submit(prompt, SamplingParams(max_tokens=20))
    finish(engine)
    assert tokens_of(request) == expected_tokens(prompt, 20)
    assert request.finish_reason == "length"
    assert len(backend.steps) == -(-length // budget) + 19
    assert max(len(step.tokens) for step in backend.steps) <= budget


@pytest.mark.parametrize("budget", [4, 16, 512])
def test_a_batch_gives_what_each_request_gives_alone(budget: int) -> None:
    engine = fake_engine(parallel=4, token_budget=budget)
    prompts = [prompt_of(length, seed) for seed, length in enumerate((3, 150, 1, 64, 90, 7))]
    counts = [30, 5, 12, 1, 40, 100]
    requests = []
    for prompt, count in zip(prompts, counts, strict=True):
        requests.append(engine.submit(prompt, SamplingParams(max_tokens=count)))
        engine.step()
        engine.check_integrity()
    finish(engine)
    for request, prompt, count in zip(requests, prompts, counts, strict=True):
        assert tokens_of(request) == expected_tokens(prompt, count)


def test_sampling_does_not_depend_on_company() -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=25, repetition_penalty=1.2)
    alone = fake_engine()
    request = alone.submit(prompt_of(30), params)
    finish(alone)
    together = fake_engine(parallel=3, token_budget=8)
    others = [together.submit(prompt_of(50, seed), params) for seed in (1, 2)]
    same = together.submit(prompt_of(30), params)
    finish(together)
    assert tokens_of(same) == tokens_of(request)
    assert tokens_of(others[0]) != tokens_of(others[1])


def test_first_come_first_served() -> None:
    engine = fake_engine(parallel=2, token_budget=16)
    requests = [engine.submit(prompt_of(40, s), SamplingParams(max_tokens=3)) for s in range(5)]
    order = []
    while engine.busy:
        order += [d.request.id for d in engine.step() if d.finish_reason]
    assert order == [request.id for request in requests]


def test_prompts_share_steps_with_decoding() -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, parallel=2, token_budget=32)
    engine.submit(prompt_of(1), SamplingParams(max_tokens=50))
    engine.step()
    engine.submit(prompt_of(100), SamplingParams(max_tokens=5))
    engine.step()
    assert [span.rows for span in backend.steps[-1].spans] == [1, 31]
    assert backend.steps[-1].logits_indices.tolist() == [0]


def test_stop_tokens_end_a_request() -> None:
    prompt = prompt_of(10)
    tokens = expected_tokens(prompt, 20)
    stop = tokens[6]
    engine = fake_engine(stop_ids=frozenset({stop}))
    request = engine.submit(prompt, SamplingParams(max_tokens=20))
    longer = engine.submit(prompt, SamplingParams(max_tokens=20, ignore_eos=True))
    finish(engine)
    assert tokens_of(request) == tokens[: tokens.index(stop) + 1]
    assert request.finish_reason == "stop"
    assert tokens_of(longer) == tokens


def test_the_whole_context_can_be_used() -> None:
    engine = fake_engine(context=128)
    prompt = prompt_of(100)
    request = engine.submit(prompt, SamplingParams())
    finish(engine)
    assert tokens_of(request) == expected_tokens(prompt, 28)
    assert engine.limit(prompt_of(127), SamplingParams()) == 1


def test_what_cannot_be_served_is_refused() -> None:
    engine = fake_engine(context=128)
    with pytest.raises(EngineError, match=r"prompt has 128 tokens .* context of 128"):
        engine.submit(prompt_of(128), SamplingParams())
    with pytest.raises(EngineError, match=r"100 tokens and 29 more .* at most 28"):
        engine.submit(prompt_of(100), SamplingParams(max_tokens=29))
    with pytest.raises(EngineError, match="empty"):
        engine.submit([], SamplingParams())
    with pytest.raises(EngineError, match="token 97"):
        engine.submit([3, 97], SamplingParams())
    with pytest.raises(EngineError, match="4097"):
        fake_engine(context=4097)
    with pytest.raises(EngineError, match="parallel"):
        fake_engine(parallel=9, token_budget=8)
    assert not engine.busy


def test_the_queue_has_an_end() -> None:
    engine = fake_engine()
    for _ in range(QUEUE_LIMIT):
        engine.submit([1], SamplingParams(max_tokens=1))
    with pytest.raises(QueueFull):
        engine.submit([1], SamplingParams(max_tokens=1))
    engine.step()
    engine.submit([1], SamplingParams(max_tokens=1))


def test_cancelling_frees_blocks_at_once_and_nobody_else_notices() -> None:
    engine = fake_engine(parallel=2, token_budget=16)
    prompts = [prompt_of(60, seed) for seed in range(4)]
    requests = [engine.submit(p, SamplingParams(max_tokens=30)) for p in prompts]
    for _ in range(12):
        engine.step()
    engine.cancel(requests[0])
    engine.cancel(requests[2])
    engine.cancel(requests[2])
    engine.check_integrity()
    assert requests[0].done
    finish(engine)
    assert tokens_of(requests[1]) == expected_tokens(prompts[1], 30)
    assert tokens_of(requests[3]) == expected_tokens(prompts[3], 30)
    assert requests[2].output == []
    assert requests[0].finish_reason is None
    engine.cancel(requests[1])
    assert not requests[1].cancelled


@pytest.mark.parametrize("where", ["embed", "layer", "head"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_step_that_is_broken_off_can_be_taken_again(
    where: str, error: type[BaseException]
) -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, parallel=2, token_budget=32)
    prompts = [prompt_of(50), prompt_of(20, 1)]
    requests = [engine.submit(p, SamplingParams(max_tokens=20)) for p in prompts]
    runs = 0

    def interrupt(segment: str) -> None:
        nonlocal runs
        runs += segment == where
        if segment == where and runs % 3 == 0:
            raise error

    backend.before = interrupt
    broken = 0
    while engine.busy:
        try:
            engine.step()
        except (KeyboardInterrupt, MemoryError):
            broken += 1
        engine.check_integrity()
    assert broken > 5
    for request, prompt in zip(requests, prompts, strict=True):
        assert tokens_of(request) == expected_tokens(prompt, 20)


def test_an_error_in_the_commit_ends_the_requests_of_the_step() -> None:
    class Broken:
        def push(self, id: int) -> str:
            raise RuntimeError("no text")

        def finish(self) -> str:
            return ""

    engine = fake_engine(parallel=2)
    request = engine.submit(prompt_of(9), SamplingParams(), Broken())
    with pytest.raises(RuntimeError):
        engine.step()
    assert request.cancelled
    assert not engine.busy
    engine.check_integrity()


def test_blocks_of_earlier_requests_are_not_seen() -> None:
    """KV is reused without clearing it: what a table does not reach must not matter."""
    engine = fake_engine(context=KV_BLOCK * 2)
    for seed in range(4):
        prompt = prompt_of(100 - 30 * seed, seed)
        request = engine.submit(prompt, SamplingParams(max_tokens=10))
        finish(engine)
        assert tokens_of(request) == expected_tokens(prompt, 10)


@pytest.mark.parametrize("budget", [16, 33, 512])
@pytest.mark.parametrize("first", [0, 100, 198])
def test_logprobs_of_a_text(budget: int, first: int) -> None:
    backend = FakeBackend()
    engine = fake_engine(backend, token_budget=budget)
    tokens = prompt_of(200)
    got = engine.logprobs(tokens, first)
    expected = [
        log_softmax(logits_of(history_hash(tokens[: i + 1])))[tokens[i + 1]]
        for i in range(first, 199)
    ]
    # Two ways to the same float64 number: a unit in the last place of the sum's logarithm.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    assert backend.most_rows <= 64
    engine.check_integrity()


def test_scoring_needs_free_blocks() -> None:
    engine = fake_engine()
    engine.submit(prompt_of(10), SamplingParams())
    engine.step()
    with pytest.raises(PoolError, match="are free"):
        engine.logprobs(prompt_of(200), 100)
    engine.check_integrity()


def test_status_counts_what_is_held_and_what_was_done() -> None:
    engine = fake_engine(parallel=2, token_budget=64)
    assert (engine.status().sweeps, engine.status().last) == (0, None)
    request = engine.submit(range(80), SamplingParams(max_tokens=3))
    for _ in range(2):
        engine.submit([1], SamplingParams(max_tokens=9))
    engine.step()
    status = engine.status()
    assert (status.waiting, status.running, status.sweeps) == (1, 2, 1)
    assert (status.tokens, engine.computed(request)) == (64, 63)
    attended = 63 * 64 // 2 + 1
    assert status.last == StepSize(64, 1, attended // 64)
    assert status.kv_blocks_used == 2
    while engine.busy:
        engine.step()
    # The last token of an answer is never computed.
    assert engine.status().tokens == 82 + 2 * 9
    assert engine.status().kv_blocks_free == status.kv_blocks
    assert engine.computed(request) == 0
