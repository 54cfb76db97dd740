"""Plans keep their promises for every model, machine and budget."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from copy import deepcopy
from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.backends.cpu.profile import panel_bytes
from strata.errors import UsageError
from strata.guard.limits import GRAMMARS, TEMPLATE_BYTES, TEMPLATE_BYTES_LEAST
from strata.kv import window_blocks
from strata.machine import constants
from strata.plan import (
    BudgetTooSmall,
    Limits,
    Machine,
    Outline,
    Plan,
    Prediction,
    Workload,
    from_json,
    to_json,
)
from strata.plan.budgets import budget_table
from strata.plan.planner import Planner, fill, fill_orders, plan
from strata.plan.tokenizer_memory import tokenizer_building_bytes, tokenizer_bytes
from strata.sizes import format_size
from support.described import machine, model
from support.sampling import every

MACHINES = ("laptop", "raspberry_pi", "server")
MODELS = (
    ("smollm2-135m", "Q4_1"),
    ("llama-3.2-1b", "Q8_0"),
    ("qwen3-0.6b", None),
    ("llama-3.1-8b", "Q4_K_M"),
    ("gemma-3-4b", "Q4_K_M"),
    ("llama-3.1-70b", "Q4_K_M"),
)
MB, GB = 10**6, 10**9


def slowness(p: Plan) -> float:
    return p.predicted.ttft_s / p.predicted.decode_tok_s


def resident_bytes(model: Outline, names: Collection[str]) -> int:
    held = {m.source: m.packed_bytes for u in model.units if u.name in names for m in u.matrices}
    return sum(held.values())


def check(model: Outline, host: Machine, limits: Limits, work: Workload, p: Plan) -> None:
    shares = p.predicted.memory
    assert shares.total == sum(astuple(shares)) <= p.budget
    # It may be that of building the tokenizer, before any of the shares is taken.
    assert p.predicted.peak_bytes <= p.budget
    assert min(astuple(shares)) >= 0
    assert shares.resident == resident_bytes(model, p.resident) + model.vector_bytes
    assert sorted(p.resident + p.streamed) == sorted(u.name for u in model.units)
    streams = [u for u in model.units if u.name in p.streamed]
    assert p.predicted.sweep_bytes == sum(u.streamed_bytes for u in streams)
    if all(u.reads == "rows" for u in streams):
        assert p.ring_bytes == 0 or streams
    else:
        assert p.tile_bytes >= max(
            s.least_tile for s in model.segments if any(u in streams for u in s.units)
        )
        assert p.ring_bytes >= 3 * p.tile_bytes
        assert shares.activations >= p.threads * model.profile.scratch_bytes(streams=True)
        # Loading takes the place of what comes after it.
        later = shares.ring + shares.kv + shares.activations + shares.logits
        assert shares.staging + later >= p.io_threads * p.request_bytes
    assert p.max_tokens >= work.concurrency
    assert p.kv_blocks[0] * 64 >= p.parallel * p.context
    assert p.context >= min(model.context, work.prompt_tokens + 1)
    assert p.threads == (limits.threads or host.cores)
    assert min(p.predicted.ttft_s, p.predicted.decode_tok_s) > 0
    assert all(c.reason and "\n" not in c.reason for c in p.choices)


@pytest.mark.parametrize(
    ("machine_name", "shape", "recipe"),
    [
        pytest.param(host, *model, marks=pytest.mark.slow if model != MODELS[0] and i else ())
        for model in MODELS
        for i, host in enumerate(MACHINES)
    ],
)
def test_a_table_of_budgets(machine_name: str, shape: str, recipe: str | None) -> None:
    m, host, work = model(shape, recipe), machine(machine_name), Workload(context=1024)
    table = budget_table(m, host, Limits(), work)
    assert len(table) >= 2
    for p in table:
        check(m, host, Limits(), work, p)
    # More memory is never slower, keeps at least as much, and at the end everything.
    for less, more in itertools.pairwise(table):
        assert slowness(more) <= slowness(less)
    assert table[-1].streamed == ()
    assert table[-1].predicted.sweep_bytes == 0
    assert table[-1].predicted.bound != "disk"


@settings(max_examples=20, deadline=None)
@given(
    # The largest takes most of the time, and is in the table above.
    which=st.sampled_from(MODELS[:-1]),
    host=st.sampled_from(MACHINES),
    memory=st.integers(100 * MB, 60 * GB),
    more=st.integers(0, 5 * GB),
    prompt=st.integers(1, 3000),
    concurrency=st.integers(1, 40),
    kv_type=st.sampled_from(("f16", "bf16", "q8_0")),
)
@pytest.mark.slow
def test_any_plan_keeps_its_promises(
    which: tuple[str, str | None],
    host: str,
    memory: int,
    more: int,
    prompt: int,
    concurrency: int,
    kv_type: str,
) -> None:
    m, h = model(*which), machine(host)
    work = Workload(prompt, concurrency, 4096)
    limits = Limits(memory, kv_type=kv_type)  # type: ignore[arg-type]
    try:
        p = plan(m, h, limits, work)
    except BudgetTooSmall as error:
        p = plan(m, h, replace(limits, memory=error.smallest), work)
    check(m, h, limits, work, p)
    assert p.kv_type == kv_type
    assert from_json(Plan, json.loads(json.dumps(to_json(p)))) == p
    larger = plan(m, h, replace(limits, memory=p.budget + more), work)
    # A sweep of many tokens is not offered where all weights would stay beside it: prompts lose a
    # little there, and nowhere else.
    shorter = larger.max_tokens < p.max_tokens and p.max_tokens > constants.RESIDENT_TOKENS
    assert slowness(larger) <= slowness(p) * (1.1 if shorter else 1)


def test_a_plan_is_a_pure_function() -> None:
    m, host = model("llama-3.1-8b"), machine("laptop")
    before = deepcopy(host)
    first = plan(m, host, Limits(2 * GB), Workload())
    assert plan(m, host, Limits(2 * GB), Workload()) == first
    assert host == before


@pytest.mark.parametrize(("shape", "recipe"), MODELS)
def test_the_smallest_budget_does_and_one_below_does_not(shape: str, recipe: str | None) -> None:
    m, host = model(shape, recipe), machine("laptop")
    with pytest.raises(
        BudgetTooSmall, match=r"needs \d+MB, and would then give .* tok/s"
    ) as caught:
        plan(m, host, Limits(20 * MB), Workload())
    smallest = caught.value.smallest
    assert isinstance(caught.value, UsageError)
    assert plan(m, host, Limits(smallest), Workload()).predicted.memory.total <= smallest
    with pytest.raises(BudgetTooSmall):
        plan(m, host, Limits(smallest - 3 * MB), Workload())


def test_a_budget_that_was_named_does_for_a_process_that_is_a_little_larger() -> None:
    m, host = model("qwen3-0.6b"), machine("laptop")
    limits = Limits(20 * MB, process_bytes=55 * MB)
    with pytest.raises(BudgetTooSmall) as caught:
        plan(m, host, limits, Workload())
    again = replace(limits, memory=caught.value.smallest)
    assert str(again.memory)[:-6] + "MB" in str(caught.value)
    for more in range(0, constants.PROCESS_VARIES, 250_000):
        process = 55 * MB + more
        assert plan(m, host, replace(again, process_bytes=process), Workload())


def test_a_tokenizer_that_is_there_took_as_much_while_it_was_built() -> None:
    m, host = model("gemma-3-4b"), machine("laptop")
    kept = tokenizer_bytes(m.tokenizer) - 15 * MB
    small = replace(m, tokenizer=replace(m.tokenizer, kept=kept))
    least = [Planner(each, host, Limits(), Workload()) for each in (m, small)]
    plans = [each.plan(each.floor()) for each in least]
    shares = [p.predicted.memory for p in plans]
    assert shares[0].tokenizer - shares[1].tokenizer == 15 * MB
    built = constants.PROCESS + tokenizer_building_bytes(m.tokenizer)
    assert all(p.predicted.peak_bytes >= built for p in plans)
    assert all(p.budget >= built for p in plans)


def test_an_8b_model_runs_in_300_mb() -> None:
    p = plan(model("llama-3.1-8b"), machine("laptop"), Limits(300 * MB), Workload())
    assert p.predicted.memory.total <= 300 * MB


def test_a_text_without_an_answer_fills_the_context() -> None:
    m, host = model("smollm2-135m"), machine("server")
    whole = Workload(256, answer_tokens=0, context=256)
    assert plan(m, host, Limits(2 * GB), whole).context == 256
    with pytest.raises(UsageError, match="leaves no room"):
        plan(m, host, Limits(2 * GB), replace(whole, answer_tokens=1))


def test_a_longer_context_is_reserved_and_not_predicted() -> None:
    m, host = model("llama-3.1-8b"), machine("server")
    short, long = (
        plan(m, host, Limits(20 * GB), Workload(256, 1, context, 64)).predicted
        for context in (320, 4096)
    )
    assert long.memory.kv - short.memory.kv == 2 * 32 * 1024 * 2 * (4096 - 320)
    assert long.peak_bytes == short.peak_bytes


def test_a_server_has_memory_of_its_own() -> None:
    m, host = model("llama-3.1-8b"), machine("server")
    alone, serving = (
        plan(m, host, Limits(20 * GB), Workload(serving=s)).predicted for s in (False, True)
    )
    assert alone.memory.server == alone.memory.guard == 0
    assert serving.memory.server > 30 * MB
    # A library, and what a grammar keeps for each token: in another process.
    assert serving.memory.guard > 20 * MB + 500 * m.vocabulary
    assert alone.peak_bytes < serving.peak_bytes < alone.peak_bytes + 2 * serving.memory.server
    # In the smallest budget it is the least that does, and no grammar's.
    smallest = [Planner(m, host, Limits(), Workload(serving=s)).floor() for s in (False, True)]
    assert smallest[0] + 45 * MB < smallest[1] < smallest[0] + serving.memory.server


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("shape", ["smollm2-135m", "llama-3.1-8b"])
def test_what_is_set_aside_grows_with_the_budget(shape: str, foreign: bool) -> None:
    m, host = replace(model(shape), foreign_template=foreign), machine("server")
    work = Workload(concurrency=4, serving=True)
    planner = Planner(m, host, Limits(), work)
    floor, full = planner.floor(), planner.everything()
    budgets = [floor + (full - floor) * n // 12 for n in range(13)]
    plans = [planner.plan(budget) for budget in budgets]
    for p in plans:
        check(m, host, Limits(p.budget), work, p)
        more = p.predicted.memory.guard + p.predicted.memory.server
        least = plans[0].predicted.memory.guard + plans[0].predicted.memory.server
        # Modest, unless there is room for all weights as well.
        assert not p.streamed or more - least <= (p.budget - floor) / 3
    set_aside = [(p.grammars, p.template_bytes, p.admitted_bytes) for p in plans]
    assert all(
        a <= b for one, two in itertools.pairwise(set_aside) for a, b in zip(one, two, strict=True)
    )
    assert set_aside[0] == (0, foreign * TEMPLATE_BYTES_LEAST, constants.REQUESTS_LEAST)
    assert set_aside[-1] == (GRAMMARS, foreign * TEMPLATE_BYTES, constants.REQUESTS)
    # What is said of the smallest budget with a grammar is so.
    said = next(c.reason for c in plans[0].choices if c.name == "grammars")
    least = int(said.split("MB")[0]) * MB
    assert planner.plan(least).grammars == 1
    assert planner.plan(least - 2 * MB).grammars == 0


def test_who_asks_for_no_grammars_has_none() -> None:
    m, host = model("smollm2-135m"), machine("server")
    p = plan(replace(m, foreign_template=True), host, Limits(8 * GB), Workload(concurrency=4))
    assert (p.grammars, p.template_bytes, p.admitted_bytes) == (0, TEMPLATE_BYTES, 0)
    assert plan(m, host, Limits(8 * GB), Workload()).predicted.memory.guard == 0


def test_kv_of_all_requests_is_bounded_and_has_room_for_one() -> None:
    m, host, work = model("llama-3.1-8b"), machine("server"), Workload(concurrency=8, context=1024)
    block = m.kv_bytes((1,), "f16")
    p = plan(m, host, Limits(20 * GB, kv_bytes=20 * block + 1), work)
    assert (p.kv_blocks, p.predicted.memory.kv) == ((20,), 20 * block)
    with pytest.raises(UsageError, match="do not hold a context of 1024 positions"):
        plan(m, host, Limits(20 * GB, kv_bytes=16 * block - 1), work)
    # A context that nobody asked for is as long as there is room.
    p = plan(m, host, Limits(20 * GB, kv_bytes=20 * block), Workload(concurrency=2))
    assert p.context == 20 * 64


def test_windowed_layers_keep_what_they_see() -> None:
    m, host = model("gemma-3-4b"), machine("laptop")
    p = plan(m, host, Limits(8 * GB), Workload(context=32768))
    assert p.context == 32768
    every, window = p.kv_blocks
    assert (every, window) == (512, window_blocks(m.groups[1], p.max_tokens))
    assert p.predicted.memory.kv == m.kv_bytes(p.kv_blocks, "f16") < 1e9
    # Without windows it would be that of 34 layers, each with keys and values of 4 heads.
    without = m.kv_bytes((every, every), "f16")
    assert without == 34 * 2 * 4 * 256 * 2 * 32768
    assert without == pytest.approx(4.6e9, rel=0.01)
    (context,) = (c for c in p.choices if c.name == "context")
    saved = format_size(without - p.predicted.memory.kv)
    assert context.reason == f"as given; windows save {saved}"
    # Where a bound shares the blocks out nothing is said, nor where there are no windows.
    work = Workload(concurrency=4, context=8192)
    bounded = plan(m, host, Limits(8 * GB, kv_bytes=GB), work)
    unwindowed = plan(model("llama-3.1-8b"), host, Limits(8 * GB), work)
    for other in (bounded, unwindowed):
        (context,) = (c for c in other.choices if c.name == "context")
        assert context.reason == "as given"


def test_a_gate_and_what_it_gates_go_through_the_ring_two_panels_of_each() -> None:
    m = model("llama-3.1-8b")
    layer = m.segments[1]
    gate = next(w for w in layer.matrices if "gate" in w.name)
    assert layer.least_tile >= 4 * panel_bytes(gate)


@pytest.mark.parametrize("memory", [4 * GB, 14 * GB, 30 * GB])
def test_streamed_units_lie_evenly_between_resident_ones(memory: int) -> None:
    m = model("llama-3.1-70b")
    p = plan(m, machine("laptop"), Limits(memory), Workload(context=1024))
    layers = [u for u in m.units if u.name.startswith("layer")]
    kept = [u.name in p.resident for u in layers]
    assert 5 < sum(kept) < 160
    # What streams between two that stay is no more than twice what would be even.
    runs, run = [0], 0
    for unit, stays in zip(layers, kept, strict=True):
        run = 0 if stays else run + unit.streamed_bytes
        runs.append(run)
    streamed = sum(u.streamed_bytes for u, stays in zip(layers, kept, strict=True) if not stays)
    largest = max(u.streamed_bytes for u in layers)
    assert max(runs) <= 2 * streamed / sum(kept) + 2 * largest


@settings(max_examples=200, deadline=None)
@given(
    which=st.sampled_from(MODELS),
    room=st.integers(0, 50 * GB),
    more=st.one_of(st.integers(0, 100 * MB), st.integers(0, 5 * GB)),
)
def test_more_room_never_keeps_fewer_bytes(
    which: tuple[str, str | None], room: int, more: int
) -> None:
    m = model(*which)
    for order in fill_orders(m):
        assert sorted(u.name for u in order) == sorted(u.name for u in m.units)
        small, large = (resident_bytes(m, fill(order, r)) for r in (room, room + more))
        assert small <= large
        assert small <= room


def test_the_head_stays_where_layers_hide_what_they_read_in_its_place() -> None:
    m, work = model("llama-3.2-1b"), Workload(context=1024)
    planner = Planner(m, machine("laptop"), Limits(), work)
    head, layers = m.segments[-1], m.segments[1:-1]
    # Room for all layers, or for the head and as much less of them.
    tight = planner.everything() - head.packed_bytes // 2
    p = planner.plan(tight)
    assert "head" in p.resident
    assert next(c for c in p.choices if c.name == "weights").reason.startswith("the head, and")
    assert 0 < sum(any(u.name in p.streamed for u in s.units) for s in layers) < len(layers)


def test_what_a_router_chooses_from_gives_way_to_what_every_sweep_reads() -> None:
    m = model("llama-3.2-1b")
    routed = replace(m.segments[1].units[0], reads="routed")
    changed = replace(m.segments[1], units=(routed, *m.segments[1].units[1:]))
    segments = (m.segments[0], changed, *m.segments[2:])
    m = replace(m, profile=replace(m.profile, segments=segments))
    for order in fill_orders(m):
        assert [u.reads for u in order[-2:]] == ["routed", "rows"]
        assert {u.reads for u in order[:-2]} == {"all"}


def test_a_tied_table_is_held_once() -> None:
    m = model("llama-3.2-1b", "Q8_0")
    p = plan(m, machine("laptop"), Limits(4 * GB), Workload())
    assert p.streamed == ()
    table = m.segments[0].packed_bytes
    assert p.predicted.memory.resident == sum(s.packed_bytes for s in m.segments) - table + (
        m.vector_bytes
    )


def test_a_table_that_is_only_looked_up_stays_out_first() -> None:
    m = model("llama-3.1-8b")
    full = Planner(m, machine("server"), Limits(), Workload(context=1024)).everything()
    p = plan(m, machine("server"), Limits(full - 100 * MB), Workload(context=1024))
    assert p.streamed == ("embed",)
    assert p.predicted.sweep_bytes == 0


def test_without_a_budget_a_share_of_the_free_memory_is_left() -> None:
    host = machine("laptop")
    p = plan(model("llama-3.1-8b"), host, Limits(), Workload())
    assert p.budget == int(host.memory_available * 0.92)
    assert any("left to others" in c.reason for c in p.choices)
    with pytest.raises(UsageError, match="give --memory"):
        plan(model("llama-3.1-8b"), replace(host, memory_available=0), Limits(), Workload())


def test_a_budget_above_what_is_there_is_what_is_there() -> None:
    m, host, work = model("llama-3.1-8b"), machine("laptop"), Workload(context=1024)
    there = plan(m, host, Limits(2 * GB), work)
    more = plan(m, host, Limits(999 * GB, there=2 * GB), work)
    assert replace(more, choices=()) == replace(there, choices=())
    assert "999 GB given" in more.choices[0].reason
    assert plan(m, host, Limits(2 * GB, there=16 * GB), work) == there


def test_context_gives_way_to_weights_unless_it_is_asked_for() -> None:
    m, host = model("llama-3.1-8b"), machine("laptop")
    assert plan(m, host, Limits(8 * GB), Workload()).context == 4096
    assert plan(m, host, Limits(1 * GB), Workload()).context == 1024
    assert plan(m, host, Limits(1 * GB), Workload(context=4096)).context == 4096
    short = model("tiny-llama")
    assert plan(short, host, Limits(8 * GB), Workload()).context == short.context == 2048


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (Workload(prompt_tokens=0), "at least one"),
        (Workload(concurrency=0), "at least one"),
        (Workload(context=10**6), "allows 2 to 131072"),
        (Workload(prompt_tokens=600, context=600), "leaves no room"),
        (Workload(prompt_tokens=200_000), "leaves no room"),
        (Workload(concurrency=5000), "at most"),
    ],
)
def test_a_workload_that_cannot_be_served(work: Workload, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(model("llama-3.1-8b"), machine("laptop"), Limits(8 * GB), work)


def test_rough_speeds_are_those_of_the_roofline() -> None:
    m = model("llama-3.1-8b")
    laptop = plan(m, machine("laptop"), Limits(8 * GB), Workload()).predicted
    # 4.6 GB of weights at 48 GB/s are 10.4 a second; KV, nodes and choices come on top.
    assert laptop.decode_tok_s == pytest.approx(48e9 / m.streamed_bytes, rel=0.15)
    assert laptop.bound == "memory"
    # 512 tokens through 7.5 billion multiplied weights at 900 GOP/s.
    assert laptop.ttft_s == pytest.approx(2 * 512 * 7.0e9 / 900e9, rel=0.25)
    card = plan(m, machine("raspberry_pi"), Limits(1 * GB), Workload()).predicted
    # The SD card gives 90 MB/s: nothing else matters.
    assert card.decode_tok_s == pytest.approx(0.09e9 / card.sweep_bytes, rel=0.1)
    assert card.bound == "disk"
    server = plan(model("llama-3.1-70b"), machine("server"), Limits(), Workload()).predicted
    assert server.sweep_bytes == 0
    assert server.decode_tok_s == pytest.approx(200e9 / 42e9, rel=0.15)


def test_a_faster_disk_and_more_cores_are_never_slower() -> None:
    m, host = model("llama-3.1-70b"), machine("laptop")
    slow = plan(m, host, Limits(4 * GB), Workload())
    disk = tuple(replace(d, bytes_s=2 * d.bytes_s) for d in host.disk)
    assert slowness(plan(m, replace(host, disk=disk), Limits(4 * GB), Workload())) <= slowness(slow)
    fewer = plan(m, host, Limits(4 * GB, threads=2), Workload())
    assert fewer.threads == 2
    assert slowness(fewer) >= slowness(slow)


def test_many_requests_share_a_sweep() -> None:
    m, host = model("llama-3.1-70b"), machine("laptop")
    one = plan(m, host, Limits(8 * GB), Workload(context=1024)).predicted
    many = plan(m, host, Limits(8 * GB), Workload(concurrency=8, context=1024)).predicted
    assert many.decode_tok_s > 5 * one.decode_tok_s


def test_formats_without_a_rate_are_estimated() -> None:
    host = machine("laptop")
    known = {k.format for k in host.kernels}
    m = model("llama-3.2-1b", "IQ4_XS")
    assert "IQ4_XS" in {w.format for s in m.segments for w in s.matrices} - known
    assert plan(m, host, Limits(4 * GB), Workload()).predicted.decode_tok_s > 1
    with pytest.raises(UsageError, match="probe it again"):
        plan(m, replace(host, kernels=()), Limits(4 * GB), Workload())
    with pytest.raises(UsageError, match="probe it again"):
        plan(m, replace(host, disk=()), Limits(4 * GB), Workload())


@pytest.mark.parametrize("together", every(3, [16, 4, 1]))
def test_room_for_guesses_makes_answers_hardly_slower_where_none_is_right(together: int) -> None:
    sizes, host, fit, some = model("smollm2-135m", "Q4_1"), machine("laptop"), 0, 0
    for megabytes in range(120, 260, 20):
        work = Workload(320, together, 640, 48)
        limits = Limits(megabytes * MB)
        try:
            without = plan(sizes, host, limits, work)
        except BudgetTooSmall:
            continue
        made = plan(sizes, host, limits, replace(work, draft_tokens=31))
        least = (1 - constants.DRAFTS_SHARE) * without.predicted.decode_tok_s
        assert made.predicted.decode_tok_s >= least
        fit += 1
        some += made.draft_tokens > 0
        if made.draft_tokens and sizes.segments[-1].units[0].name in made.resident:
            rows = made.max_tokens - together
            assert made.draft_tokens == min(31 * together, constants.DRAFTED_TOGETHER, rows)
    assert some >= fit - 1


def test_room_for_guesses_takes_no_second_search(monkeypatch: pytest.MonkeyPatch) -> None:
    predict, looked_at = Planner.predict, list[int]()

    def counted(self: Planner, *args: Any) -> Prediction:
        looked_at.append(1)
        return predict(self, *args)

    monkeypatch.setattr(Planner, "predict", counted)
    sizes, host, counts = model("llama-3.1-8b"), machine("laptop"), list[int]()
    for tokens in (0, 31):
        looked_at.clear()
        made = plan(sizes, host, Limits(1 * GB), Workload(draft_tokens=tokens))
        assert (made.draft_tokens > 0) == (tokens > 0)
        counts.append(len(looked_at))
    assert counts[1] <= counts[0] + 8
