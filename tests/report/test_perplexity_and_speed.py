"""Perplexity by its definition, and measurements that run what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strata.decode import LogitsError, log_softmax
from strata.errors import UsageError
from strata.report import Perplexity, measure, perplexity
from support.fake_model import VOCABULARY, FakeBackend, fake_engine, history_hash, logits_of

TOKENS = np.random.Generator(np.random.PCG64(5)).integers(0, VOCABULARY, 70).tolist()


@pytest.mark.parametrize("bos", [None, 1])
def test_perplexity_is_that_of_the_second_halves(bos: int | None) -> None:
    seen: list[tuple[int, int]] = []

    def progress(so_far: Perplexity, chunks: int) -> None:
        seen.append((so_far.chunks, chunks))

    got = perplexity(fake_engine(), TOKENS, context=16, bos=bos, progress=progress)
    nll = []
    for start in (0, 16, 32, 48):
        window = TOKENS[start : start + 16]
        window[0] = window[0] if bos is None else bos
        for i in range(8, 15):
            nll.append(-log_softmax(logits_of(history_hash(window[: i + 1])))[window[i + 1]])
    mean = sum(nll) / len(nll)
    assert got.tokens == len(nll) == 28
    assert got.chunks == 4
    assert got.perplexity == pytest.approx(math.exp(mean), rel=1e-12)
    variance = sum((x - mean) ** 2 for x in nll) / len(nll)
    error = math.sqrt(variance / (len(nll) - 1)) * math.exp(mean)
    assert got.stderr == pytest.approx(error, rel=1e-9)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_fewer_chunks() -> None:
    assert perplexity(fake_engine(), TOKENS, context=16, chunks=2).tokens == 14


@pytest.mark.parametrize(
    ("context", "chunks", "says"),
    [
        (3, None, "too small"),
        (16, 5, "5 windows .* 70 tokens"),
        (16, 0, "no windows"),
        (71, None, "1 windows of 71 .* for 0"),
    ],
)
def test_perplexity_that_cannot_be(context: int, chunks: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        perplexity(fake_engine(), TOKENS, context=context, chunks=chunks)


def test_a_measurement_runs_what_it_says() -> None:
    backend = FakeBackend()
    engine = fake_engine(backend)
    result = measure(engine, prompt=100, gen=5, depth=40, repeat=2)
    assert result.prefill_tok_s is not None
    assert result.decode_tok_s is not None
    assert result.prefill_tok_s.least <= result.prefill_tok_s.median <= result.prefill_tok_s.most
    sizes = [len(step.tokens) for step in backend.steps]
    assert sizes == [32, 1] + 2 * [100, 40, 1, 1, 1, 1, 1]
    assert backend.steps[-1].positions.tolist() == [44]
    assert not engine.busy


def test_half_a_measurement() -> None:
    only_prefill = measure(fake_engine(), prompt=1, gen=0, repeat=1)
    assert only_prefill.decode_tok_s is None
    only_decode = measure(fake_engine(), prompt=0, gen=1, repeat=1)
    assert only_decode.prefill_tok_s is None
    assert only_decode.ttft_s is None


def test_measurements_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        measure(fake_engine(), prompt=0, gen=0)
    with pytest.raises(UsageError, match="context of 301"):
        measure(fake_engine(), prompt=300, gen=0)


def test_an_impossible_text_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    monkeypatch.setattr(engine, "logprobs", lambda tokens, first: np.full(7, -1e5))
    with pytest.raises(LogitsError, match="100000 nats"):
        perplexity(engine, TOKENS, context=16)
