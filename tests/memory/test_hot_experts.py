"""A cache of experts begins with those that were used most when the model ran last: the same bits,
hits that the time of reading does not change, and nothing from a file that is not as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata import LLM, SamplingParams
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.experts import CachedExperts
from strata.backends.weights import WeightReadError
from strata.engine.hot_experts import hot_file, keep, recall
from strata.formats import ModelFile, open_model
from strata.models import build_model
from strata.report.explain import _MoreSlots
from support.fixed_machine import know_a_machine
from support.forward import Forward
from support.streaming import faults, forward, logits, settings

Make = Callable[[str, str | None], Path]
TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 24)]
STEPS = [8, *[1] * 16]
TRAINED = Path(__file__).resolve().parent.parent / "goldens" / "trained-mixture.gguf"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))


def experts(file: ModelFile) -> list[str]:
    every = (unit for segment in build_model(file).segments for unit in segment.units)
    return [unit.name for unit in every if unit.reads == "routed"]


def backend(run: Forward) -> CpuBackend:
    assert isinstance(run.backend, CpuBackend)
    return run.backend


def slots_of(run: Forward) -> CachedExperts:
    found = backend(run).expert_slots()
    assert found is not None
    return found


def hot(file: ModelFile) -> list[float]:
    run = forward(file, settings(experts(file), slots=12))
    run.logits(TOKENS, STEPS)
    sizes, scores = slots_of(run).scores()
    assert len(scores) == sum(sizes)
    return scores


def begun(file: ModelFile, scores: list[float], slots: int, ahead: int = 0) -> Forward:
    how = settings(experts(file), slots=slots, ahead=ahead, request=1 << 14)
    run = forward(file, how)
    backend(run).prepare()
    slots_of(run).begin_with(scores)
    return run


@pytest.mark.parametrize(("slots", "ahead"), [(1, 0), (5, 2), (12, 0), (1000, 0)])
def test_bits_are_the_same_and_hits_know_no_time(slots: int, ahead: int, make_model: Make) -> None:
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want, scores = logits(file, None, TOKENS), hot(file)
        found = []
        for delay in (0, 2000):
            with faults(delay_us=delay, seed=1):
                run = begun(file, scores, slots, ahead)
                assert run.logits(TOKENS[:4], [1] * 4).tobytes() == want[:4].tobytes()
            assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()
            stats = backend(run).stats()
            found.append((stats.expert_kept, stats.expert_hits, stats.expert_misses))
        assert found[0] == found[1]
        assert found[0][0] == min(slots - ahead, sum(score > 0 for score in scores))
        cold = forward(file, settings(experts(file), slots=slots, ahead=ahead))
        cold.logits(TOKENS[:4], [1] * 4)
        cold.logits(TOKENS, STEPS)
        assert slots < 12 or found[0][2] < backend(cold).stats().expert_misses


def test_what_is_not_read_yet_gives_way(make_model: Make) -> None:
    """To another budget, to other readers, to the end."""
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want, scores = logits(file, None, TOKENS), hot(file)
        with faults(delay_us=5000, seed=1):
            run = begun(file, scores, 12)
            before = backend(run).settings
            run.segments = backend(run).rearrange(replace(before, expert_slots=6))
            begun(file, scores, 12)  # and is dropped
        assert run.logits(TOKENS, STEPS).tobytes() == want.tobytes()


def test_a_disk_that_fails_and_a_file_that_is_replaced(make_model: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(make_model("tiny-qwen3moe", "Q4_K_M").read_bytes())
    with open_model(path) as file:
        want, scores = logits(file, None, TOKENS), hot(file)
        run = begun(file, [0.0] * len(scores), 12)
        with faults(delay_us=100, seed=1, fail_at=3):
            slots_of(run).begin_with(scores)
            for _ in range(3):
                try:
                    assert run.logits(TOKENS).tobytes() == want.tobytes()
                except WeightReadError:
                    continue
        assert run.logits(TOKENS).tobytes() == want.tobytes()
        run = begun(file, scores, 1000)
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes()[::-1])
        other.replace(path)
        for _ in range(2):
            with pytest.raises(WeightReadError, match="was changed or replaced"):
                run.logits(TOKENS)


def test_files_that_are_not_as_they_were(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    keep(model, [3, 2], [0.0, 2.0, 1e-9, 0.5, 0.0])
    assert recall(model, [3, 2]) == [0, 2.0, 0, 0.5, 0]
    assert recall(model, [3, 3]) is None
    target = hot_file(model)
    assert target.stat().st_mode & 0o077 == 0
    for scores in (
        [[5, 1.0]],
        [[-1, 1.0]],
        [[1.0, 1.0]],
        [[True, 1.0]],
        [[0, -1.0]],
        [[0, float("nan")]],
        [[0, float("inf")]],
        [[0, 1e300]],
        [[0]],
        [0],
        {},
        "x",
        [[0, "x"]],
        [[0, [1]]],
    ):
        target.write_text(json.dumps({"experts": [3, 2], "scores": scores}))
        found = recall(model, [3, 2])
        assert found is None or found == [0.0] * 5, scores
    for text in ("", "[" * 100_000, "{}", "[]", "\x00", '{"experts": [3, 2]}'):
        target.write_text(text)
        assert recall(model, [3, 2]) is None
    keep(model, [3, 2], [1.0] * 5)
    os.chmod(target, 0o666)
    assert recall(model, [3, 2]) is None
    target.unlink()
    target.symlink_to(model)
    assert recall(model, [3, 2]) is None
    target.unlink()
    os.mkfifo(target)
    assert recall(model, [3, 2]) is None
    target.unlink()
    target.mkdir()
    assert recall(model, [3, 2]) is None
    keep(model, [3, 2], [1.0] * 5)  # cannot be kept, which hurts nobody
    target.rmdir()
    keep(model, [3, 2], [1.0] * 5)
    model.write_bytes(b"GGUF2")
    assert recall(model, [3, 2]) is None


def test_a_second_run_of_a_model_begins_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_a_machine(monkeypatch, tmp_path / "known", TRAINED)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    text = "The first game of the season"
    outputs, misses, kept = [], [], []
    with LLM(TRAINED, context=64, planned=True) as llm:
        assert llm.plan is not None
        whole = llm.plan
    routed = tuple(name for name in whole.resident if name.endswith("experts"))
    stays = tuple(name for name in whole.resident if name not in routed)
    plan = replace(whole, resident=stays, expert_slots=128, io_threads=2)
    plan = replace(plan, streamed=(*whole.streamed, *routed))
    for _ in range(2):
        with LLM(TRAINED, plan=plan) as llm:
            outputs.append(llm.generate(text, params).token_ids)
            stats = llm.runtime.backend.stats()
            misses.append(stats.expert_misses)
            kept.append(stats.expert_kept)
            assert llm.explain().experts_kept == stats.expert_kept
    assert outputs[0] == outputs[1]
    assert kept[0] == 0 < kept[1] <= 128
    assert misses[1] < misses[0] / 2


def test_more_memory_for_experts_reads_less() -> None:
    """As the explanation says what a GB more would do: by the hit rate of so many more slots."""
    more = _MoreSlots(each=10, others=60, slots=40, rate=lambda n: n / 100)
    assert more.still_read(0) == more.still_read(9) == 1
    assert more.still_read(200) == pytest.approx(0.4 / 0.6)
    assert more.still_read(600) == more.still_read(10**9) == 0
