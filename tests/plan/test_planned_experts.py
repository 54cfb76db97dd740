"""Plans of mixtures: what does not fit is held in slots, and more memory is never worse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from strata.backends.profile import SweepSize
from strata.backends.settings import EXPERT_DECAY
from strata.machine import constants
from strata.plan import Limits, Plan, Workload
from strata.plan.budgets import budget_table
from strata.plan.expert_policies import SURE_OF, hit_rate
from strata.plan.planner import Planner, plan
from strata.plan.routes import HitCurve
from support.described import machine, model

MB, GB = 10**6, 10**9
SHAPES = ("qwen3-30b-a3b", "mixtral-8x7b")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_of_budgets(shape: str) -> None:
    m, host = model(shape), machine("laptop")
    routed = {unit.name for unit in m.units if unit.reads == "routed"}
    table = budget_table(m, host, Limits(), Workload(context=1024))
    assert len(table) >= 4
    for p in table:
        shares = p.predicted.memory
        assert p.predicted.peak_bytes <= p.budget
        assert shares.total <= p.budget
        assert shares.experts == p.expert_slots * m.profile.slot_bytes
        # Rows of tables are kept in what is left.
        assert shares.rows == p.row_cache_bytes <= constants.ROW_CACHE
        if "embed" in p.streamed and p.row_cache_bytes < constants.ROW_CACHE:
            assert p.budget - 3 <= shares.total
        # All are resident, or all share the slots.
        assert routed <= set(p.resident) or routed <= set(p.streamed)
        assert (p.expert_slots >= constants.LEAST_SLOTS) == (routed <= set(p.streamed))
        # Slots come after what every sweep reads.
        dense = [unit for unit in m.units if unit.reads == "all"]
        if p.expert_slots > constants.LEAST_SLOTS + 8:
            assert {unit.name for unit in dense} <= set(p.resident)
            assert (p.ring_bytes, p.tile_bytes) == (0, 0)
    for less, more in itertools.pairwise(table):
        assert more.predicted.decode_tok_s >= 0.99 * less.predicted.decode_tok_s
        assert more.expert_slots >= less.expert_slots or not more.expert_slots
    assert table[-1].expert_slots == 0
    assert table[-1].row_cache_bytes == 0
    assert any(p.row_cache_bytes for p in table)


@pytest.mark.parametrize("tokens", [1, 7, 512])
def test_rows_of_tables_are_waited_for_one_after_the_other(tokens: int) -> None:
    """In each thread; of two tables of which a token asks for one row and for seven, eight."""
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    costs = Planner(m, host, Limits(threads=4), Workload(context=1024))._costs
    every = {unit.name for unit in m.units}
    size = SweepSize(1, tokens, 0, 1)
    streaming = costs.streaming(every - {"embed"}, 1e9, 0)
    assert streaming.lookups == 1
    within = costs.sweep_s(size, replace(streaming, lookups=0))
    for lookups in (1, 8):
        rounds = -(-tokens * lookups // 4)
        seconds = costs.sweep_s(size, replace(streaming, lookups=lookups)) - within
        assert seconds == pytest.approx(rounds * host.read_latency_s)


def between(shape: str, share: float) -> Plan:
    """One in which about this share of what everything takes is there."""
    m, host = model(shape), machine("laptop")
    planner = Planner(m, host, Limits(), Workload(context=1024))
    return planner.plan(int(share * planner.everything()))


def test_bytes_of_a_token_are_those_of_the_experts_that_are_not_there() -> None:
    p, m = between("qwen3-30b-a3b", 0.5), model("qwen3-30b-a3b")
    assert p.ring_bytes == 0
    needed = sum(8 * unit.expert_bytes for unit in m.units if unit.experts)
    assert 0.3 < p.predicted.expert_hit_rate < 0.7
    assert p.predicted.expert_hit_rate == hit_rate(48 * 128, 48, p.expert_slots, 8)
    assert p.predicted.sweep_bytes == round(needed * (1 - p.predicted.expert_hit_rate))
    # Not all that are there to be chosen from, as a sweep would read them.
    assert p.predicted.sweep_bytes < 0.06 * sum(u.file_bytes for u in m.units if u.experts)
    (said,) = [c for c in p.choices if c.name == "experts"]
    assert f"{p.expert_slots} of 6144" in said.value
    assert "if all are chosen alike" in said.reason
    assert f"{p.predicted.expert_hit_rate:.0%}" in said.reason


def test_uses_lose_worth_as_found_most() -> None:
    """Of what was recorded the Plan takes what finds most in the slots that it has."""
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    every = m.profile.experts
    slow = HitCurve(1, 500, ((every // 4, 0.3), (every, 1.0)), 0.999)
    fast = HitCurve(1, 500, ((every // 4, 0.5), (3 * every // 4, 0.6), (every, 1.0)), 0.9)
    m = replace(m, hits=(slow, fast))
    planner = Planner(m, host, Limits(), Workload(context=1024))
    assert between("qwen3-30b-a3b", 0.4).expert_decay == EXPERT_DECAY
    for share, best in ((0.3, fast), (0.8, slow)):
        p = planner.plan(int(share * planner.everything()))
        assert (p.expert_decay, p.predicted.expert_hit_rate) == (
            best.decay,
            best.rate(p.expert_slots),
        )
        (said,) = [c for c in p.choices if c.name == "experts"]
        assert f"counts {best.decay:g} times" in said.reason


def test_a_sweep_of_many_rows_reads_each_expert_once() -> None:
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    planner = Planner(m, host, Limits(), Workload(context=1024))
    p = planner.plan(planner.floor() + 50 * MB)
    rates = planner._costs.streaming(p.resident, 1e9, p.ring_bytes, p.expert_slots)
    every = sum(unit.file_bytes for unit in m.units if unit.experts)
    missing = 1 - p.predicted.expert_hit_rate
    assert rates.expert_bytes(4096) == pytest.approx(every * missing)
    one = sum(8 * unit.expert_bytes for unit in m.units if unit.experts)
    assert rates.expert_bytes(1) == pytest.approx(one * missing)


@pytest.mark.parametrize(("shape", "parallel"), [("mixtral-8x7b", 16), ("qwen3-30b-a3b", 1)])
def test_experts_are_read_before_their_turn_where_that_pays(shape: str, parallel: int) -> None:
    """Into as many slots as make the whole workload the fastest: what a slot is for is not found
    again by steps that need about all experts, as sixteen sequences of Mixtral do, and prompts."""
    m, host = model(shape), machine("laptop")
    work = Workload(prompt_tokens=32 if parallel > 1 else 512, concurrency=parallel, context=1024)
    planner = Planner(m, host, Limits(), work)
    p = planner.plan(int(0.4 * planner.everything()))
    assert p.expert_sure == (0 if parallel > 1 else p.expert_slots // SURE_OF)
    costs = planner._costs
    given = (p.resident, 2e9, 0, p.expert_slots, 0, parallel)
    rates = [costs.streaming(*given, sure).hit_rate for sure in (0, 4, p.expert_slots // SURE_OF)]
    if parallel > 1:
        assert rates[0] > rates[1] >= rates[2]
    else:
        assert len(set(rates)) == 1


def test_nothing_is_read_before_the_first_layer_of_experts() -> None:
    m, host = model("mixtral-8x7b"), machine("laptop")
    costs = Planner(m, host, Limits(), Workload(context=1024))._costs
    resident = frozenset(unit.name for unit in m.units if unit.reads != "routed")
    size = SweepSize(1, 512, 0, 1)
    found = costs.streaming(resident, 2e9, 0, 40, sure=10)
    without = costs.streaming(resident, 2e9, 0, 40, sure=0)
    whole = [costs._experts_s(size, replace(s, hit_rate=0.0))[2] for s in (found, without)]
    one = [
        costs._experts_s(size, replace(s, hit_rate=0.0, experts=s.experts[:1]))[2]
        for s in (found, without)
    ]
    assert whole[0] < whole[1]
    assert one[0] == one[1]


def test_the_floor_has_the_least_slots() -> None:
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    planner = Planner(m, host, Limits(), Workload(context=1024))
    p = planner.plan(planner.floor())
    assert p.expert_slots >= constants.LEAST_SLOTS
    assert p.predicted.expert_hit_rate == hit_rate(m.profile.experts, 48, p.expert_slots, 8)
    more = plan(m, host, replace(Limits(), memory=planner.floor() + GB), Workload(context=1024))
    assert more.expert_slots > p.expert_slots


@pytest.mark.parametrize("rows", [1, 16, 512])
def test_what_is_there_is_worked_on_while_the_others_are_read(rows: int) -> None:
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    planner = Planner(m, host, Limits(), Workload(context=1024))
    costs = planner._costs
    resident = frozenset(unit.name for unit in m.units if unit.reads != "routed")
    size = SweepSize(rows, 1, 64, 1)
    inside = costs.sweep_s(size, costs.streaming(resident, 1e9, 0, m.profile.experts))
    products = sum(sum(s.experts_seconds(rows, costs.rates)) for s in m.segments)
    assert 0 < products < inside
    for slots in (64, 2000, 5000):
        streaming = costs.streaming(resident, 1e9, 0, slots)
        reading, packing, waited = costs._experts_s(size, streaming)
        total = costs.sweep_s(size, streaming)
        assert total == pytest.approx(inside + waited)
        # Some work hides some reading, never all of it, and what is packed takes the cores. Of many
        # rows the next layer's are read while this one attends.
        begin = len(streaming.experts) * costs._begin_s
        hides = inside if rows == 512 else products
        assert max(reading - hides, packing) <= waited <= max(reading + begin, packing)
        assert waited < reading + begin or reading <= packing
    # A disk that takes no time leaves the packing, and one that takes all of it the last ones.
    fast = costs.streaming(resident, 1e15, 0, 64)
    assert costs._experts_s(size, fast)[2] == pytest.approx(costs._experts_s(size, fast)[1])
    slow = costs.streaming(resident, 1e6, 0, 64)
    reading, _, waited = costs._experts_s(size, slow)
    assert waited == pytest.approx(reading, rel=0.01)


def test_a_layer_in_which_some_are_missing_is_waited_for_whatever_others_find() -> None:
    """One miss in ten layers is one wait, not the tenth of one in each, which work would hide."""
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    costs = Planner(m, host, Limits(), Workload(context=1024))._costs
    resident = frozenset(unit.name for unit in m.units if unit.reads != "routed")
    size = SweepSize(1, 1, 64, 1)
    streaming = replace(costs.streaming(resident, 2e9, 0, 6000), hit_rate=0.99)
    reading, packing, waited = costs._experts_s(size, streaming)
    layers = len(streaming.experts)
    products = sum(sum(s.experts_seconds(1, costs.rates)) for s in m.segments)
    assert reading < products  # all of it would be hidden if it came evenly
    some = layers * (1 - 0.99**8)
    one = reading / (layers * 8 * 0.01)
    assert waited > max(packing, some * (one - products / layers))
    # And each is waited for from the moment on at which it is asked for.
    at_once = replace(host, read_latency_s=0.0)
    quick = Planner(m, at_once, Limits(), Workload(context=1024))._costs
    _, _, sooner = quick._experts_s(size, streaming)
    assert waited - sooner == pytest.approx(some * host.read_latency_s, rel=0.01)


def test_the_first_prompt_finds_nothing() -> None:
    """Whatever one sequence finds while it answers."""
    m, host = model("qwen3-30b-a3b"), machine("laptop")
    every = m.profile.experts
    m = replace(m, hits=(HitCurve(1, 500, ((every // 8, 0.98), (every, 1.0))),))
    planner = Planner(m, host, Limits(), Workload(prompt_tokens=512, context=1024))
    p = planner.plan(int(0.3 * planner.everything()))
    assert p.predicted.expert_hit_rate > 0.95
    routed = [unit for unit in m.units if unit.experts]
    needed = sum(unit.file_bytes * unit.needed(512) / unit.experts for unit in routed)
    fastest = max(d.bytes_s for d in host.disk)
    assert p.max_tokens >= 512
    # And slots are memory that nobody has had.
    filled = p.expert_slots * m.profile.slot_bytes / constants.FRESH_BYTES
    assert p.predicted.ttft_s > needed / fastest + filled
