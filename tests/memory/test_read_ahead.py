"""Experts that are read before they are chosen: the same bits, hits as without, no byte counted
twice, whatever time anything takes and whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import make_tiny_variants
from strata import LLM
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.foresight import foresight
from strata.backends.weights import WeightReadError, WeightSource
from strata.formats import ModelFile, open_model
from strata.models import build_model
from strata.plan.expert_policies import SURE_OF, Visit
from support.expert_policies import DecayingFrequency, replay
from support.forward import Forward
from support.streaming import faults, forward, logits, settings, units

Make = Callable[[str, str | None], Path]
TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 24)]
STEPS = [8, *[1] * 16]
TEXT = "The first game of the season was played in the city . The team won the game , and the"
TRAINED = Path(__file__).resolve().parent.parent / "goldens" / "trained-mixture.gguf"


def experts(file: ModelFile) -> list[str]:
    every = (unit for segment in build_model(file).segments for unit in segment.units)
    return [unit.name for unit in every if unit.reads == "routed"]


def backend(run: Forward) -> CpuBackend:
    assert isinstance(run.backend, CpuBackend)
    return run.backend


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("tiny-qwen3moe", "Q4_K_M"),
        pytest.param("tiny-qwen3moe", None, marks=pytest.mark.slow),
        pytest.param("tiny-mixtral", "Q4_K_M", marks=pytest.mark.slow),
    ],
)
def test_bits_and_hits_are_those_without(name: str, recipe: str | None, make_model: Make) -> None:
    with open_model(make_model(name, recipe)) as file:
        want = logits(file, None, TOKENS)
        routed = [
            u for u in CpuBackend.profile(build_model(file), WeightSource(file)).units if u.experts
        ]
        sizes = [unit.experts for unit in routed]
        for held, ahead in ((1, 1), (2, 5), (9, 3), (20, 8), (1000, 2)):
            how = settings(
                experts(file),
                slots=held + ahead,
                ahead=ahead,
                request=1 << 14,
                threads=1 + held % 4,
            )
            run = forward(file, how, threads=1 + ahead % 3)
            backend(run).prepare()
            recording = backend(run).expert_slots()
            assert recording is not None
            recording.record(on=True)
            with faults(delay_us=20 * ahead, seed=held):
                assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()
                assert run.logits(TOKENS).tobytes() == want.tobytes()
            cache = backend(run)._experts
            assert cache is not None
            visits = [Visit(*visit) for visit in cache.visits]
            said = replay(visits, sizes, held, DecayingFrequency(sizes), held // SURE_OF)
            stats = backend(run).stats()
            assert (stats.expert_hits, stats.expert_misses) == (said.hits, said.misses)
            # Each byte from the disk was needed, or was wasted.
            assert stats.expert_read <= stats.wanted <= stats.expert_read + stats.wasted_bytes
            assert stats.ahead <= stats.expert_misses
            assert stats.ahead_bytes <= stats.expert_read


def test_a_trained_router_is_told_before_attention() -> None:
    """On a mixture that was trained; what is foreseen depends on no time."""
    found = []
    with LLM(TRAINED, context=64) as llm:
        ids = llm.tokenize(TEXT)
    with open_model(TRAINED) as file:
        for delay in (0, 300):
            run = forward(file, settings(experts(file), slots=48, ahead=8, request=1 << 16))
            with faults(delay_us=delay, seed=1):
                run.logits(ids, [1] * len(ids))
            stats = backend(run).stats()
            found.append((stats.foreseen, stats.foreseen_right, stats.expert_misses))
            assert stats.foreseen_right > 0.7 * stats.foreseen > 0.4 * stats.expert_misses
            assert 0 < stats.ahead <= stats.foreseen_right
    assert found[0] == found[1]


def test_files_of_many_routers_say_what_they_will_read(tmp_path: Path) -> None:
    """Routers that read a norm of the layer's value, or the layer's input itself."""
    for name in ("qwen2moe", "smallthinker", "gpt-oss"):
        path = make_tiny_variants.write(tmp_path / f"{name}.gguf", name)
        with open_model(path) as file:
            segments = build_model(file).segments
            assert any(foresight(s.program) for s in segments), name
            few = make_tiny_variants.tokens()[:6]
            want = logits(file, None, few)
            run = forward(file, settings(units(file), ring=1 << 21, slots=6, ahead=3))
            assert run.logits(few, [1] * len(few)).tobytes() == want.tobytes()
            # A router that streams is not there to be asked.
            assert backend(run).stats().foreseen == 0
            run = forward(file, settings(experts(file), slots=6, ahead=3))
            assert run.logits(few, [1] * len(few)).tobytes() == want.tobytes()
            stats = backend(run).stats()
            assert stats.foreseen > 0
            if name == "smallthinker":
                assert stats.foreseen_right == stats.foreseen


@pytest.mark.parametrize("kind", ["fail_at", "cut_at", "die_at"])
def test_reads_ahead_that_fail(kind: str, make_model: Make) -> None:
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want = logits(file, None, TOKENS)
        for at in (1, 20):
            run = forward(file, settings(experts(file), slots=9, ahead=4, request=1 << 14))
            with faults(delay_us=100, seed=at, **{kind: at}), suppress(WeightReadError):
                assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()
            assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()


def test_other_budgets_keep_what_is_there(make_model: Make) -> None:
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want = logits(file, None, TOKENS)
        run = forward(file, settings(experts(file), slots=20, ahead=4, request=1 << 14))
        for slots, ahead in ((12, 4), (3, 2), (30, 0), (16, 8), (16, 1)):
            assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()
            how = settings(experts(file), slots=slots, ahead=ahead, request=1 << 14)
            run.segments = backend(run).rearrange(how)
            cache = backend(run)._experts
            assert cache is not None
            assert (cache.slots, cache.ahead) == (slots, ahead)
        assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()
