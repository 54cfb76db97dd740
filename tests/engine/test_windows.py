"""Windowed layers in a run by a Plan: they hold what they see, and prefixes are found again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK
from strata.backends.cpu.host import available_isas
from strata.backends.registry import backend_class
from strata.backends.weights import WeightSource
from strata.decode import Sample
from strata.formats import open_model
from strata.kv import blocks_for, window_blocks
from strata.models import build_model
from strata.plan import Limits, Plan, Workload
from strata.plan.outline import outline
from strata.plan.planner import plan
from support.described import machine
from support.weighing import settled_bytes

WINDOW, CONTEXT = 100, 1400
PROMPT = [int(t) for t in np.random.default_rng(8).integers(20, 250, 1100)]
TAIL = [7, 8, 9]
PARAMS = SamplingParams(max_tokens=70, temperature=0.8, seed=4, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma's pattern: windowed layers, and one between them that keeps all positions."""
    golden = make_tiny_models.golden("gemma3")
    more = {"max_position_embeddings": 2048, "sliding_window": WINDOW}
    golden = replace(golden, config=golden.config | more)
    return make_tiny_models.write_directory(tmp_path_factory.mktemp("tiny") / "gemma3", golden)


def planned(path: Path, backend: str, parallel: int) -> Plan:
    with open_model(path) as file:
        model = build_model(file)
        profile = backend_class(backend).profile(model, WeightSource(file))
        sizes = outline(path.name, model, file, profile)
    host = replace(machine("laptop"), isa=available_isas()[0], cores=2)
    process = settled_bytes()
    limits = Limits(process + 300 * 10**6, 2, process_bytes=process)
    made = plan(sizes, host, limits, Workload(100, parallel, CONTEXT, 20))
    assert made.kv_blocks[1] == parallel * window_blocks(model.groups[1], made.max_tokens)
    assert made.kv_blocks[0] == parallel * blocks_for(CONTEXT)
    return made


def held(llm: LLM) -> list[list[int]]:
    """Positions of each running request, and the blocks of each group that it holds."""
    engine = llm.engine
    running = engine._scheduler._running.values()
    return [[s.kv.length, *engine._memory.manager.held(s.kv)] for s in running]


def run(llm: LLM, *prompts: list[int]) -> list[tuple[list[Sample], int]]:
    """Answers, and how many tokens of each prompt were known; blocks are looked at in between."""
    engine = llm.engine
    full, windowed = llm.model.groups
    most = window_blocks(windowed, engine.token_budget)
    assert (full.window, windowed.window) == (0, WINDOW)
    requests = [engine.submit(prompt, PARAMS) for prompt in prompts]
    seen = 0
    while engine.busy:
        engine.step()
        engine.check_integrity()
        for length, *blocks in held(llm):
            # After a step nothing is held for what comes next.
            assert blocks[0] == blocks_for(length)
            assert blocks[1] <= min(blocks_for(WINDOW + KV_BLOCK) + 1, most)
            seen = max(seen, length)
    assert seen >= len(prompts[0])
    assert engine.status().kv_blocks_used == 0
    return [(request.output, request.cached_tokens) for request in requests]


@pytest.fixture(scope="module")
def alone(path: Path, backend: str) -> Iterator[dict[int, list[Sample]]]:
    """Answers to the prompt and to the longer one, each with nothing known."""
    with LLM(path, plan=planned(path, backend, 1), backend=backend) as llm:
        answers = {}
        for prompt in (PROMPT, PROMPT + TAIL):
            llm.engine.forget_prefixes()
            ((output, known),) = run(llm, prompt)
            assert known == 0
            answers[len(prompt)] = output
        yield answers


def test_a_window_holds_what_it_sees_and_gives_the_rest_back(
    path: Path, backend: str, alone: dict[int, list[Sample]]
) -> None:
    made = planned(path, backend, 1)
    with LLM(path, plan=made, backend=backend) as llm:
        pools = llm.engine._memory.manager.pools
        assert tuple(pool.blocks for pool in pools) == made.kv_blocks
        assert llm.engine.kv_bytes == llm.ledger.owned["kv"] == made.predicted.memory.kv
        # Of the window's few blocks many more were used in turn.
        assert pools[1].blocks < blocks_for(len(PROMPT)) // 2
        assert run(llm, PROMPT) == [(alone[len(PROMPT)], 0)]
        llm.engine.forget_prefixes()
        assert [pool.free for pool in pools] == list(made.kv_blocks)


def test_a_prefix_is_found_again_across_a_window(
    path: Path, backend: str, alone: dict[int, list[Sample]]
) -> None:
    longer = PROMPT + TAIL
    with LLM(path, plan=planned(path, backend, 2), backend=backend) as llm:
        run(llm, PROMPT)
        ((output, known),) = run(llm, longer)
        assert known >= len(PROMPT) // KV_BLOCK * KV_BLOCK
        assert output == alone[len(longer)]
        # And of two that come together, one goes on from what the other has.
        llm.engine.forget_prefixes()
        first, second = run(llm, longer, PROMPT)
        assert first == (alone[len(longer)], 0)
        assert second[0] == alone[len(PROMPT)]
        assert second[1] >= (len(PROMPT) - 1) // KV_BLOCK * KV_BLOCK


def test_a_prefix_is_found_again_where_there_is_room_for_one(
    path: Path, backend: str, alone: dict[int, list[Sample]]
) -> None:
    longer = PROMPT + TAIL
    with LLM(path, plan=planned(path, backend, 1), backend=backend) as llm:
        run(llm, longer)
        assert run(llm, longer) == [(alone[len(longer)], (len(longer) - 1) // KV_BLOCK * KV_BLOCK)]
