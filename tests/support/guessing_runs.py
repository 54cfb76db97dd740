"""Requests answered with something that guesses for them, and without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.backends.base import NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.decode import NO_DRAFT, Draft, Sample, SamplingParams
from strata.engine import Engine, KVSettings, Runner
from strata.engine.drafting import Drafting
from strata.engine.guesser import Guesser
from strata.formats import ModelFile
from strata.program import Model

CONTEXT = 256


def loaded(file: ModelFile, model: Model, parallel: int, *, streamed: bool = False) -> Runner:
    """The model in memory, or with all of its layers streamed."""
    layers = model.segments[1:-1] if streamed else ()
    settings = BackendSettings(
        max_tokens=64,
        max_logit_rows=8,
        positions=CONTEXT,
        parallel=parallel,
        streamed=frozenset(unit.name for segment in layers for unit in segment.units),
        ring_bytes=(1 << 20) * streamed,
        tile_bytes=(1 << 16) * streamed,
    )
    backend = backend_class("cpu").create(2, None, settings, NoBooks())
    return Runner(backend, model, WeightSource(file), logit_rows=8)


class Nothing:
    """Guesses nothing."""

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        return NO_DRAFT

    def end(self, id: int, tokens: Sequence[int]) -> None:
        pass


def answers(
    runner: Runner,
    asked: Sequence[Sequence[int]],
    p: SamplingParams,
    guesser: Guesser | None,
    *,
    turns: int = 1,
    **kv: object,
) -> tuple[list[list[Sample]], Engine]:
    """Of ``turns`` rounds of the same requests."""
    drafting = None
    if guesser is not None:
        drafting = Drafting(Nothing(), most=4, model=guesser, recurrent=True)
    engine = Engine(
        runner,
        context=CONTEXT,
        parallel=len(asked),
        token_budget=64,
        drafting=drafting,
        kv=KVSettings(**{"prefix_cache": False, **kv}),  # type: ignore[arg-type]
    )
    out = []
    for _ in range(turns):
        requests = [engine.submit(prompt, p) for prompt in asked]
        while engine.busy:
            engine.step()
            engine.check_integrity()
        out += [request.output for request in requests]
    return out, engine


def prompts(vocabulary: int, *lengths: int) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, vocabulary, n).tolist() for n in lengths]
