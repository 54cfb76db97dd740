"""Sampling against a naive version that sorts everything, and against statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strata.decode import Draft, LogitsError, Sampler, SamplingParams, log_softmax, sampling
from strata.errors import UsageError

Floats = NDArray[np.float32]


def naive_distribution(
    logits: Floats, params: SamplingParams, prompt: list[int], answer: list[int]
) -> dict[int, float]:
    """Token -> probability after every filter, one token at a time in plain Python."""
    scores = [np.float32(x) for x in logits]
    for token, bias in params.logit_bias.items():
        scores[token] += np.float32(bias)
    penalty = np.float32(params.repetition_penalty)
    for token in {*prompt, *answer}:
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(answer):
        scores[token] -= np.float32(params.frequency_penalty) * np.float32(
            answer.count(token)
        ) + np.float32(params.presence_penalty)
    order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
    if params.top_k:
        order = order[: params.top_k]
    best = float(scores[order[0]])
    weight = {t: math.exp((float(scores[t]) - best) / params.temperature) for t in order}
    if params.top_p < 1:
        total, mass, kept = sum(weight.values()), 0.0, []
        for token in order:
            kept.append(token)
            mass += weight[token]
            if mass >= params.top_p * total:
                break
        order = kept
    order = [t for t in order if weight[t] >= params.min_p]
    total = sum(weight[t] for t in order)
    return {t: weight[t] / total for t in sorted(order)}


def naive_choice(distribution: dict[int, float], seed: int, index: int) -> int:
    u = np.random.Generator(np.random.Philox(key=seed, counter=index)).random()
    mass = 0.0
    for token, probability in distribution.items():
        mass += probability
        if u < mass:
            return token
    return token


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(1, 900),
    spread=st.sampled_from([0.0, 0.1, 1.0, 8.0]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    penalties=st.sampled_from([(1.0, 0.0, 0.0), (1.3, 0.4, -0.6), (0.7, -0.3, 1.1)]),
    few=st.sampled_from([1, 2, 16, 1024]),
)
def test_choice_is_the_naive_one(
    seed: int,
    size: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalties: tuple[float, float, float],
    few: int,
) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    # Rounded, so that many logits are equal and ties are met at every border.
    logits = (np.round(generator.standard_normal(size) * 4) / 4 * spread).astype(np.float32)
    prompt = generator.integers(0, size, 10).tolist()
    answer = generator.integers(0, size, 5).tolist()
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalties[0],
        frequency_penalty=penalties[1],
        presence_penalty=penalties[2],
        seed=seed,
        logit_bias={0: 0.5, size - 1: -0.5},
    )
    sampler = Sampler(params, prompt, size)
    for token in answer:
        sampler.accept(token)
    before = logits.copy()
    # Small stretches, so that a small vocabulary takes the ways of a large one.
    with patch.object(sampling, "_FEW", few):
        chosen = sampler.choose(logits).token
        assert np.array_equal(logits, before)
        assert sampler.choose(logits).token == chosen, "choosing must change nothing"
    expected = naive_distribution(logits, params, prompt, answer)
    # The sums are formed in another order: a border of the nucleus or of the draw may move by a few
    # units in the last place, which these seeds do not hit.
    assert chosen == naive_choice(expected, seed, len(answer))


def test_draws_follow_the_distribution() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 3.0, 2.0], np.float32)
    params = SamplingParams(temperature=1.5, top_p=0.95, seed=7)
    sampler = Sampler(params, [], len(logits))
    draws = 20_000
    counts = np.zeros(len(logits))
    for _ in range(draws):
        token = sampler.choose(logits).token
        counts[token] += 1
        sampler.accept(token)
    expected = naive_distribution(logits, params, [], [])
    assert set(np.flatnonzero(counts)) == set(expected)
    chi_square = sum((counts[t] - draws * p) ** 2 / (draws * p) for t, p in expected.items())
    # 0.001 quantile for len(expected) - 1 = 4 degrees of freedom; the seed is fixed.
    assert len(expected) == 5
    assert chi_square < 18.5


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    logits = np.zeros(1000, np.float32)
    params = SamplingParams(temperature=1.0, seed=3)

    def run(skip: int) -> list[int]:
        sampler = Sampler(params, [], 1000)
        for _ in range(skip):
            sampler.accept(0)
        tokens = []
        for _ in range(8 - skip):
            tokens.append(sampler.choose(logits).token)
            sampler.accept(tokens[-1])
        return tokens

    assert run(0)[3:] == run(3)
    assert len(set(run(0))) > 4
    other = Sampler(replace(params, seed=4), [], 1000)
    assert other.choose(logits).token != run(0)[0]


def test_without_a_seed_two_samplers_differ() -> None:
    params = SamplingParams(temperature=1.0)
    assert Sampler(params, [], 10).seed != Sampler(params, [], 10).seed


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.array([0, 5, 1, 5], np.float32)
    assert Sampler(SamplingParams(), [], 4).choose(logits).token == 1


def test_penalties_move_the_greedy_choice() -> None:
    logits = np.array([1.0, 1.2, -0.1], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [1], 3)
    assert sampler.choose(logits).token == 0
    sampler = Sampler(SamplingParams(presence_penalty=0.3), [1], 3)
    assert sampler.choose(logits).token == 1, "presence counts the answer, not the prompt"
    sampler.accept(1)
    assert sampler.choose(logits).token == 0


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0], np.float32)
    params = SamplingParams(logprobs=3, logit_bias={0: 50.0})
    sample = Sampler(params, [], 4).choose(logits)
    total = sum(math.exp(float(x)) for x in logits)
    assert sample.token == 0
    assert sample.logprob == pytest.approx(1.0 - math.log(total), abs=1e-12)
    assert [token for token, _ in sample.top] == [1, 3, 2]
    assert sample.top[2][1] == pytest.approx(2.0 - math.log(total), abs=1e-12)
    only = Sampler(SamplingParams(logprobs=0), [], 4).choose(logits)
    assert only.top == ()
    assert only.logprob is not None
    many = Sampler(SamplingParams(logprobs=100), [], 4).choose(logits)
    assert len(many.top) == 4


@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.8, "min_p": 0.2}])
def test_processed_logprobs_are_of_what_is_drawn_from(limits: dict[str, Any]) -> None:
    logits = np.array([1.0, 3.0, -np.inf, 2.0, 3.0, -4.0], np.float32)
    params = SamplingParams(
        temperature=0.7,
        repetition_penalty=1.2,
        seed=3,
        logprobs=6,
        processed_logprobs=True,
        **limits,
    )
    sample = Sampler(params, [1], len(logits)).choose(logits)
    finite = np.where(np.isfinite(logits), logits, np.float32(-1e9))
    expected = naive_distribution(finite, params, [1], [])
    found = {token: math.exp(logprob) for token, logprob in sample.top}
    assert found == pytest.approx({t: p for t, p in expected.items() if p}, abs=1e-6)
    assert math.exp(sample.logprob or 0.0) == pytest.approx(expected[sample.token], abs=1e-6)
    plain = Sampler(replace(params, processed_logprobs=False), [1], len(logits)).choose(logits)
    assert plain.token == sample.token
    greedy = Sampler(replace(params, temperature=0.0), [], len(logits)).choose(logits)
    assert (greedy.token, greedy.logprob, greedy.top) == (1, 0.0, ((1, 0.0),))


def test_log_softmax_of_far_apart_logits() -> None:
    logprobs = log_softmax(np.array([-1e30, 0, 1e30], np.float32))
    assert logprobs[2] == 0
    assert not np.isnan(logprobs).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    logits = np.zeros(9, np.float32)
    logits[4] = bad
    with pytest.raises(LogitsError, match="token 4"):
        Sampler(SamplingParams(temperature=temperature), [], 9).choose(logits)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[7, 30]] = 0
    for index in range(50):
        sampler = Sampler(SamplingParams(temperature=2.0, seed=index), [], 50)
        assert sampler.choose(logits).token in (7, 30)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 1.0001, -500], np.float32)
    assert Sampler(SamplingParams(temperature=1e-300, seed=1), [], 3).choose(logits).token == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k"),
        ({"top_p": 1.1}, "top_p must be from 0 to 1"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty must be a number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"seed": -1}, "seed must be from 0 to 18446744073709551615, not -1"),
        ({"logprobs": -1}, "logprobs"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"stop_token_ids": [-4]}, "stop_token_ids"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"logit_bias": {3: 1e40}}, "logit_bias"),
        ({"logit_bias": {3: -(10**400)}}, "logit_bias"),
        ({"logit_bias": {-3: 1.0}}, "logit_bias"),
    ],
)
def test_params_that_make_no_sense(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SamplingParams(**changes)  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.uint64(5))  # type: ignore[arg-type]


def test_a_bias_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(UsageError, match="token 12"):
        Sampler(SamplingParams(logit_bias={12: 1.0}), [], 10)


def test_a_large_vocabulary_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ranked stays small beside the vocabulary, which bounds the time as well."""
    generator = np.random.Generator(np.random.PCG64(0))
    # As peaked as a language model's: a few tokens hold most of the mass. And as flat as can be.
    peaked = (generator.standard_normal(150_000) * 3).astype(np.float32)
    peaked[:50] += 15
    flat = generator.standard_normal(150_000).astype(np.float32)
    longest = 0

    def watch(sort: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
        def watched(values: NDArray[Any], **kwargs: str) -> NDArray[Any]:
            nonlocal longest
            longest = max(longest, len(values))
            return sort(values, **kwargs)

        return watched

    monkeypatch.setattr(np, "argsort", watch(np.argsort))
    monkeypatch.setattr(np, "sort", watch(np.sort))
    params = SamplingParams(temperature=0.8, top_k=100, top_p=0.95, min_p=0.02, seed=1, logprobs=5)
    for logits in (peaked, flat):
        Sampler(params, [], 150_000).choose(logits)
        Sampler(replace(params, top_k=0, min_p=0.0), [], 150_000).choose(logits)
    assert 0 < longest < 3000


@pytest.mark.parametrize(("top_p", "tokens"), [(0.0, 1), (0.5, 2500), (0.9999, 5000)])
def test_equal_weights_count_by_index(top_p: float, tokens: int) -> None:
    kept = sampling._nucleus(np.ones(5000), top_p)
    assert kept.tolist() == list(range(tokens))


def test_a_nucleus_in_a_large_vocabulary() -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    for spread in (0.1, 1.0, 4.0):
        weights = np.exp(spread * generator.standard_normal(20_000))
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        for top_p in (0.1, 0.5, 0.95, 0.999):
            count = int(np.searchsorted(cumulative, top_p * weights.sum())) + 1
            assert sampling._nucleus(weights, top_p).tolist() == sorted(order[:count].tolist())


def test_a_share_finds_its_weight() -> None:
    generator = np.random.Generator(np.random.PCG64(4))
    weights = generator.random(5000)
    weights[generator.random(5000) < 0.5] = 0
    weights[3000:] = 0
    cumulative = np.cumsum(weights)
    for u in (0.0, 0.25, 0.5, 0.75, 0.999, np.nextafter(1, 0)):
        at = sampling._invert(weights, u)
        assert weights[at] > 0
        assert cumulative[at - 1] - 1e-9 <= u * cumulative[-1] <= cumulative[at] + 1e-9


def test_logits_behind_the_end_of_an_answer_do_not_break_it() -> None:
    """A draft may go on where its answer ends: what is damaged there concerns nobody."""
    good, damaged = np.zeros(8, np.float32), np.full(8, np.nan, np.float32)
    good[3] = 1
    sampler = Sampler(SamplingParams(temperature=0), [1], 8)
    (sample,) = sampler.verify(iter([good, damaged]), Draft((3,)))
    assert sample.token == 3
    with pytest.raises(LogitsError):
        sampler.verify(iter([damaged, good]), Draft((3,)))
