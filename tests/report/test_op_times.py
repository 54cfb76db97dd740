"""Times of Ops: every Op is counted once, in the node that does it, and no time is made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fake_model import fake_engine

pytest.importorskip("strata._native")

from strata import LLM, SamplingParams
from strata.backends.cpu.host import available_isas
from strata.backends.cpu.segment import multiplies
from strata.errors import UsageError
from strata.machine.roofline import Roofline, measure_overhead, measure_roofline
from strata.program import StepSize
from strata.report.op_times import DECODED, StepTimes, context_for_ops, time_ops

# One byte and one operation a second, so that a limit in seconds says which of the two it counts.
UNIT = Roofline(2, 1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(smollm2_path, threads=2, context=64)


@pytest.fixture(scope="module")
def times(llm: LLM) -> tuple[StepTimes, StepTimes]:
    prefill, decode = time_ops(llm.engine, UNIT, prompt=40, depth=9, repeat=1)
    assert prefill is not None
    return prefill, decode


def test_every_op_is_in_one_node(llm: LLM) -> None:
    for segment in llm.engine.runner.loaded:
        assert segment.node_times is not None
        found = [op.output for ops in segment.node_times.node_parts for op in ops]
        assert sorted(found) == sorted(op.output for op in segment.segment.program.ops)


def test_operations_and_bytes_are_those_of_the_programs(
    llm: LLM, times: tuple[StepTimes, StepTimes]
) -> None:
    prefill, decode = times
    # Positions 0 to 39 see 1 to 40 keys, 20.5 in the mean: two costs, because it takes whole ones.
    cost = llm.engine.runner.cost
    low, high = cost(StepSize(40, 1, 20)), cost(StepSize(40, 1, 21))
    assert sum(op.flops for op in prefill.ops) == (low.flops + high.flops) // 2
    whole = cost(StepSize(40, 1, 40))
    assert sum(op.bytes for op in prefill.ops) == whole.bytes
    decoded = [cost(StepSize(1, 1, 10 + i)) for i in range(DECODED)]
    flops = sum(c.flops for c in decoded) // DECODED
    assert sum(op.flops for op in decode.ops) == pytest.approx(flops, abs=len(decode.ops))


def test_times_are_of_the_step(times: tuple[StepTimes, StepTimes]) -> None:
    for step in times:
        assert 0 < step.ops_s < step.step_s
        assert all(op.seconds > 0 for op in step.ops)
        by_name = {(op.head, op.name): op for op in step.ops}
        up = by_name[False, "matmul ffn_gate+ffn_up"]
        assert up.nodes == 30
        assert (True, "matmul token_embd") in by_name
        # More operations than bytes, of a second each.
        assert up.limit_s == pytest.approx(up.flops)
    assert [step.tokens for step in times] == [40, 1]
    # Short steps run all Segments but the head in one call.
    assert [step.calls for step in times] == [2, 2]


def test_timing_ends(llm: LLM, times: tuple[StepTimes, StepTimes]) -> None:
    llm.generate([1, 2, 3])
    for segment in llm.engine.runner.loaded:
        assert segment.node_times is not None
        assert sum(seconds for _, seconds in segment.node_times.take_times()) == 0


def test_a_prompt_of_several_steps(llm: LLM) -> None:
    llm.engine.token_budget, budget = 16, llm.engine.token_budget
    llm.engine._scheduler._token_budget, kept = 16, llm.engine._scheduler._token_budget
    try:
        prefill, _ = time_ops(llm.engine, UNIT, prompt=40, depth=0, repeat=1)
    finally:
        llm.engine.token_budget, llm.engine._scheduler._token_budget = budget, kept
    assert prefill is not None
    # Three steps of 31 Segments, which are short enough for one call each, and the head once.
    assert prefill.calls == 3 + 1
    assert {op.nodes for op in prefill.ops if op.name == "matmul ffn_down"} == {90}


def test_what_is_known_already_is_computed_again(smollm2_path: Path) -> None:
    with LLM(smollm2_path, threads=2, context=200) as llm:
        llm.generate(list(range(150)), SamplingParams(max_tokens=1))
        before = llm.engine.status().tokens
        time_ops(llm.engine, UNIT, prompt=150, depth=1, repeat=2)
        # Twice the prompt; a token before, and those decoded, three times.
        assert llm.engine.status().tokens - before == 2 * 150 + 3 * (1 + DECODED)


def test_no_prompt(llm: LLM) -> None:
    prefill, decode = time_ops(llm.engine, UNIT, prompt=0, depth=0, repeat=1)
    assert prefill is None
    assert decode.depth == 1


def test_only_timed_backends() -> None:
    with pytest.raises(UsageError, match="cpu backend"):
        time_ops(fake_engine(), UNIT, prompt=1, depth=0, repeat=1)


def test_what_is_multiplied() -> None:
    for isa in available_isas():
        assert multiplies("q8", isa) == "int8"
        assert multiplies("f32", isa) == "f32"
        assert multiplies("bf16", isa) == ("bf16" if isa == "avx512" else "f32")


def test_limits_are_measured() -> None:
    roofline = measure_roofline(1, available_isas()[0])
    assert roofline.read_bytes_s > 1e8
    assert roofline.int8_ops_s > 1e8
    assert roofline.multiply_ops_s("f32") == roofline.f32_ops_s > 1e7
    overhead = measure_overhead(2, available_isas()[0])
    assert overhead.call_s > 0
    assert overhead.node_s >= 0


def test_context_is_enough() -> None:
    assert context_for_ops(depth=9) == 9 + DECODED + 1
