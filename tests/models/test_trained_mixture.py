"""A mixture that was trained: its text is English, and its routes are learned ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from strata import LLM, SamplingParams
from strata.report.routes import compare, record

MODEL = Path(__file__).resolve().parent.parent / "goldens" / "trained-mixture.gguf"
TEXT = (
    "The first game of the season was played in the city . The team won the game , and the "
    "second half of the year was the best in the history of the club . In the following year "
    "the company was sold to the government , which used the building for a new school . "
)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM(MODEL, context=256, threads=2) as llm:
        yield llm


def test_it_has_learned_english(llm: LLM) -> None:
    found = llm.perplexity(TEXT, context=32)
    assert 5 < found.perplexity < 200  # of a vocabulary of 2048


def test_its_routes_are_skewed_and_sticky_and_its_bits_the_same(llm: LLM) -> None:
    ids = llm.tokenize(TEXT)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    want = llm.generate(ids, params).token_ids
    with llm.driver.alone() as engine:
        routes = record(llm.runtime, engine, ids, 64)
    assert routes.experts == (32,) * 8
    assert routes.chosen.shape[1:] == (8, 4)
    assert routes.stickiness() > routes.by_chance
    assert routes.skew(0.25) > 0.3
    for found in compare(routes):
        assert found.rates["frequency"] <= found.rates["belady"]
    # All experts go through slots now.
    assert llm.generate(ids, params).token_ids == want
