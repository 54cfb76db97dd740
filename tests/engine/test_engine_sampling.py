"""The engine asks each request's Sampler once a token, and tells it what was chosen."""

from __future__ import annotations

import pytest

from strata.decode import Sampler, SamplingParams
from support.fake_model import VOCABULARY, fake_engine, history_hash, logits_of


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=9, max_tokens=40),
        SamplingParams(temperature=0.5, seed=9, top_k=5, presence_penalty=2.0, max_tokens=40),
        SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, max_tokens=40),
    ],
)
def test_tokens_are_those_of_the_sampler_alone(params: SamplingParams) -> None:
    prompt = [5, 6, 7]
    engine = fake_engine(parallel=2, token_budget=4)
    engine.submit([1] * 30, SamplingParams(max_tokens=60))
    request = engine.submit(prompt, params)
    while engine.busy:
        engine.step()
    sampler, tokens = Sampler(params, prompt, VOCABULARY), list(prompt)
    for _ in range(40):
        tokens.append(sampler.choose(logits_of(history_hash(tokens))).token)
        sampler.accept(tokens[-1])
    assert [sample.token for sample in request.output] == tokens[3:]
    assert len(set(tokens)) > 5
