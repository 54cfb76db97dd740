"""Requests that run together, with guesses of which some are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.decode import Sample, SamplingParams
from strata.engine import Engine
from strata.engine.drafting import Drafting
from support.proposers import Oracle

Answers = list[list[Sample]]


def prompts(vocabulary: int) -> list[list[int]]:
    """The last begins as the first does, with more than a block."""
    random = np.random.default_rng(6)
    out: list[list[int]] = [random.integers(0, vocabulary, n).tolist() for n in (90, 61, 62, 40)]
    return [*out, out[0][:70] + out[1][:20]]


def guessing(asked: list[list[int]], known: Answers, vocabulary: int) -> Drafting:
    """Guesses of which three of four are right."""
    whole = [[*p, *(s.token for s in output)] for p, output in zip(asked, known, strict=True)]

    def follow(tokens: Sequence[int]) -> list[int]:
        return next((w[len(tokens) :] for w in whole if w[: len(tokens)] == list(tokens)), [])

    return Drafting(Oracle(follow, 0.75, vocabulary=vocabulary), most=6)


def run(engine: Engine, asked: list[list[int]], params: SamplingParams) -> tuple[Answers, int]:
    """The answers, and how many tokens were known."""
    requests = [engine.submit(prompt, params) for prompt in asked]
    while engine.busy:
        engine.step()
        engine.check_integrity()
    return [r.output for r in requests], sum(r.cached_tokens for r in requests)
