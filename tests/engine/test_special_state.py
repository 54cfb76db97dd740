"""Families whose attention or layers are special, end to end: windows and chunks, keys that other
layers share, values of another width, latents, sinks, several streams, layers that run again.

Answers are those of one request alone, in one piece: with guesses rolled back, where some give way,
where a prefix is found in memory, and where it is found on disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from strata.backends.base import NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.decode import SamplingParams
from strata.engine import Engine, KVSettings, Runner, StoreSettings
from strata.engine.drafting import Drafting
from strata.formats import open_model
from strata.kv.store_directory import StoreDirectory
from strata.models import build_model
from support.company import Answers, guessing, prompts, run
from support.special_models import SPECIAL, VOCABULARY, write

CONTEXT = 128
PARAMS = SamplingParams(max_tokens=20, logprobs=2, ignore_eos=True)
# One with values of another width and sinks, one whose late layers keep nothing.
USUAL = {"mimo2", "gemma4"}


def answers(engine: Engine, asked: list[list[int]]) -> tuple[Answers, int]:
    """And how many tokens were known."""
    return run(engine, asked, PARAMS)


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in sorted(SPECIAL)]
)
def test_answers_are_those_alone(name: str, tmp_path: Path) -> None:
    asked = prompts(VOCABULARY)
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
        engine = made(4, few, guessing(asked, alone, VOCABULARY))
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
