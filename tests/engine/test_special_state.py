"""Families whose attention or layers are special, end to end: windows and chunks, keys that other
layers share, values of another width, latents, sinks, several streams, layers that run again.

Answers are those of one request alone, in one piece: with guesses rolled back, where some give way,
where a prefix is found in memory, and where it is found on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.base import NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.decode import Sample, SamplingParams
from strata.engine import Engine, KVSettings, Runner, StoreSettings
from strata.engine.drafting import Drafting
from strata.formats import open_model
from strata.kv.store_directory import StoreDirectory
from strata.models import build_model
from support.proposers import Oracle
from support.special_models import SPECIAL, VOCABULARY, write

CONTEXT = 128
PARAMS = SamplingParams(max_tokens=20, logprobs=2, ignore_eos=True)
# One with values of another width and sinks, one whose late layers keep nothing.
USUAL = {"mimo2", "gemma4"}
Answers = list[list[Sample]]


def prompts() -> list[list[int]]:
    """Two of which begin alike with more than a block."""
    random = np.random.default_rng(6)
    out: list[list[int]] = [random.integers(0, VOCABULARY, n).tolist() for n in (90, 61, 62, 40)]
    return [*out, out[0][:70] + out[1][:20]]


def answers(engine: Engine, asked: list[list[int]]) -> tuple[Answers, int]:
    """And how many tokens were known."""
    requests = [engine.submit(prompt, PARAMS) for prompt in asked]
    while engine.busy:
        engine.step()
        engine.check_integrity()
    return [r.output for r in requests], sum(r.cached_tokens for r in requests)


def guessing(asked: list[list[int]], known: Answers) -> Drafting:
    """Guesses of which three of four are right."""
    whole = [[*p, *(s.token for s in output)] for p, output in zip(asked, known, strict=True)]

    def follow(tokens: Any) -> list[int]:
        found = (w[len(tokens) :] for w in whole if w[: len(tokens)] == list(tokens))
        return next(found, [])

    return Drafting(Oracle(follow, 0.75, vocabulary=VOCABULARY), most=6)


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in sorted(SPECIAL)]
)
def test_answers_are_those_alone(name: str, tmp_path: Path) -> None:
    asked = prompts()
    with open_model(write(tmp_path / "m.gguf", name)) as file:
        backend = backend_class("cpu").create(2, None, BackendSettings(), NoBooks())
        runner = Runner(backend, build_model(file, CONTEXT), WeightSource(file))

        def made(parallel: int, kv: KVSettings, drafting: Drafting | None = None) -> Engine:
            return Engine(
                runner,
                context=CONTEXT,
                parallel=parallel,
                token_budget=48,
                kv=kv,
                drafting=drafting,
            )

        alone = [answers(made(1, KVSettings(prefix_cache=False)), [p])[0][0] for p in asked]
        # Four run, whose blocks are those of two.
        few = KVSettings(blocks=tuple(5 for _ in runner.model.groups))
        engine = made(4, few, guessing(asked, alone))
        assert answers(engine, asked)[0] == alone
        status = engine.status()
        assert 0 < status.draft_tokens_kept < status.draft_tokens
        assert status.preemptions > 0
        engine = made(1, KVSettings())
        assert answers(engine, asked)[0] == alone
        again, known = answers(engine, asked)
        assert again == alone
        assert known > 0
        store = StoreSettings(StoreDirectory(tmp_path / "kv", 1 << 26), "fa" * 16, lambda: True)
        # What a busy disk has no time for is left out: some time all of it is there.
        for restart in range(12):
            engine = made(2, KVSettings(store=store))
            found, known = answers(engine, asked)
            engine.close()
            assert found == alone
            if restart and known:
                break
        assert known > 0
        backend.close()
