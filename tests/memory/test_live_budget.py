"""Another budget while answers are under way: the same bits, and memory that comes and goes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata import LLM, SamplingParams
from strata.backends.settings import BackendSettings, Reading
from strata.backends.weights import WeightReadError
from strata.engine import Job
from strata.engine.plan_check import PlanCheck
from strata.errors import UsageError
from strata.formats import open_model
from strata.machine.constants import PROCESS_VARIES
from strata.memory import process_memory
from strata.plan import BudgetTooSmall
from strata.synth import SHAPES, write_model
from support.described import machine
from support.streaming import faults

Make = Callable[[str, str | None], Path]
MB = 1 << 20
PROMPTS = [[5, 9, 11, 40, 7, 88, 23], [3] * 70, list(range(20, 61)), [200, 9]]
PARAMS = SamplingParams(max_tokens=14, ignore_eos=True)


@pytest.fixture(scope="module")
def models(
    smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Path]]:
    """Some 80 MB, so that there is something to give back."""
    directory = tmp_path_factory.mktemp("live")
    mixture, dense = SHAPES["tiny-qwen3moe"], SHAPES["tiny-llama"]
    shapes = {
        "mixture": replace(mixture, layers=6, width=512, ffn=512),
        "dense": replace(dense, layers=6, width=512, ffn=8192),
    }
    with open_model(smollm2_path) as source:
        tokenizer = dict(source.metadata)
    for name, shape in shapes.items():
        write_model(shape, directory / f"{name}.gguf", recipe="Q8_0", tokenizer=tokenizer)
    yield {name: directory / f"{name}.gguf" for name in shapes}
    shutil.rmtree(directory)


def answers(llm: LLM, budgets: list[int] | None = None, every: int = 3) -> list[list[int]]:
    """Tokens of all prompts together, with another budget now and then between two steps."""
    jobs = [Job(list(p), PARAMS, None) for p in PROMPTS]
    out: list[list[int]] = [[] for _ in jobs]
    left = list(budgets or [])
    with llm.driver.submit(jobs) as run:
        for number, (index, delta) in enumerate(run):
            out[index].append(delta.sample.token)
            if left and number % every == every - 1:
                llm.set_budget(left.pop())
                llm.engine.check_integrity()
    return out


def held(llm: LLM) -> dict[str, int]:
    """Bytes by owner, of those that hold any."""
    return {owner: nbytes for owner, nbytes in llm.ledger.owned.items() if nbytes}


def floor_of(llm: LLM) -> int:
    with pytest.raises(BudgetTooSmall) as error:
        llm.set_budget(1 * MB)
    return error.value.smallest - PROCESS_VARIES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "dense"])
def test_random_budgets_between_steps(name: str, models: Mapping[str, Path]) -> None:
    path = models[name]
    with LLM(path, parallel=3, context=128) as llm:
        want = answers(llm)
    with LLM(path, parallel=3, context=128, memory="2GB") as llm:
        assert not llm.plan or not llm.plan.expert_slots
        least = floor_of(llm)
        random = np.random.default_rng(7)
        budgets = [least + int(n) for n in random.integers(0, 12 * MB, 5)]
        budgets[2:2] = [least, 2 << 30, least]
        assert answers(llm, budgets) == want
        assert answers(llm) == want
        # The smallest is what it says, but for rounding.
        plan = llm.set_budget(least)
        assert plan.budget == least
        assert plan.streamed
        with pytest.raises(BudgetTooSmall):
            llm.set_budget(least - 4 * MB)
        assert llm.plan is plan
        assert answers(llm) == want
        back = llm.set_budget("2GB")
        assert set(back.streamed) <= {"embedding.table"} or back.expert_slots
        assert answers(llm) == want
        assert llm.ledger.total <= 2 << 30
        llm.runtime.check_integrity()


@pytest.mark.slow
def test_kv_is_shared_where_it_has_no_room(models: Mapping[str, Path]) -> None:
    path = models["mixture"]
    with LLM(path, parallel=3, context=1024, memory="2GB") as llm:
        want = answers(llm)
        before = llm.engine.kv_bytes
        least = floor_of(llm)
        llm.set_budget(least)
        assert llm.engine.kv_bytes < before
        assert llm.ledger.owned["kv"] == llm.engine.kv_bytes
        assert answers(llm, [2 << 30, least, 2 << 30]) == want
        assert llm.engine.kv_bytes == before


def arrangements(llm: LLM, count: int) -> list[tuple[BackendSettings, tuple[int, ...]]]:
    """Random choices of what stays and streams, of steps, slots and blocks."""
    random = np.random.default_rng(5)
    names = [u.name for segment in llm.model.segments for u in segment.units]
    out = []
    for _ in range(count):
        streamed = frozenset(n for n in names if random.random() < random.choice([0.2, 0.8]))
        settings = replace(
            llm.runtime.settings,
            streamed=streamed,
            ring_bytes=1 << 21,
            tile_bytes=1 << 15,
            expert_slots=int(random.choice([1, 3, 20, 64])),
            max_tokens=int(random.choice([8, 32, 64])),
            reading=Reading(3, 1 << 15, bool(random.random() < 0.5), drop_behind=True),
        )
        out.append((settings, tuple(int(random.choice([2, 3, 9])) for _ in llm.model.groups)))
    return out


@pytest.mark.parametrize("name", ["tiny-qwen3moe", "tiny-llama"])
def test_anything_else_that_stays_between_steps(name: str, make_model: Make) -> None:
    with LLM(make_model(name, "Q4_K_M"), parallel=3, context=128) as llm:
        want = answers(llm)
        before, books = llm.runtime.settings, held(llm)
        blocks = tuple(pool.blocks for pool in llm.engine._memory.manager.pools)

        def arrange(settings: BackendSettings, blocks: tuple[int, ...]) -> None:
            with llm.driver.alone() as engine:
                engine.rearrange(settings, llm.runtime.settings, blocks)
            llm.runtime.settings = settings

        left = arrangements(llm, 12)
        for _ in range(3):
            jobs = [Job(list(p), PARAMS, None) for p in PROMPTS]
            out: list[list[int]] = [[] for _ in jobs]
            with llm.driver.submit(jobs) as run:
                for number, (index, delta) in enumerate(run):
                    out[index].append(delta.sample.token)
                    if left and number % 4 == 3:
                        arrange(*left.pop())
                        llm.engine.check_integrity()
            assert out == want
        assert not left
        arrange(before, blocks)
        assert answers(llm) == want
        assert held(llm) == books


@pytest.mark.parametrize("at", [1, 4])
def test_a_disk_that_fails_leaves_it_as_it_was(at: int, make_model: Make) -> None:
    with LLM(make_model("tiny-qwen3moe", "Q4_K_M"), context=128, parallel=3) as llm:
        want, whole = answers(llm), llm.runtime.settings
        every = [unit for segment in llm.model.segments for unit in segment.units]
        names = frozenset(unit.name for unit in every if unit.reads == "routed")
        streaming = replace(whole, streamed=names, expert_slots=3)
        with llm.driver.alone() as engine:
            engine.rearrange(streaming, whole, (6,))
            owned = held(llm)
            # Weights that stay from now on are read, and one of these reads fails.
            with faults(fail_at=at), pytest.raises(WeightReadError):
                engine.rearrange(whole, streaming, (9,))
        assert held(llm) == owned
        assert answers(llm) == want
        assert llm.engine.status().kv_blocks == 6


def test_a_run_by_two_plans_says_nothing_of_the_machine(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[float] = []
    monkeypatch.setattr("strata.engine.runtime.this_machine", lambda _: machine("laptop"))
    monkeypatch.setattr(PlanCheck, "ratio", lambda _: 9.0)
    monkeypatch.setattr("strata.machine.probe.note_run", lambda _, ratio: noted.append(ratio))
    for budgets in ([], ["7GB"]):  # beside whatever other tests have left in this process
        with LLM(make_model("tiny-llama", None), context=128, memory="8GB") as llm:
            for budget in budgets:
                llm.set_budget(budget)
    assert noted == [9.0]


def test_a_backend_without_budgets(make_model: Make) -> None:
    with (
        LLM(make_model("tiny-llama", "Q4_K_M"), backend="reference", context=64) as llm,
        pytest.raises(UsageError, match="keeps to no memory budget"),
    ):
        llm.set_budget("1GB")


@pytest.mark.slow
def test_resident_memory_falls(models: Mapping[str, Path]) -> None:
    with LLM(models["mixture"], context=128, memory="2GB") as llm:
        llm.generate([5, 9, 11], PARAMS)
        full, least = process_memory().total, floor_of(llm)
        llm.set_budget(least)
        llm.generate([5, 9, 11], PARAMS)
        small = process_memory().total
        assert small < full - 30 * MB
        assert small <= least
