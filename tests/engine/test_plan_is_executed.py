"""Every field of a Plan is executed as it stands: each is changed, and the change is seen."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
import strata._native as _native
from strata import LLM, SamplingParams, UsageError
from strata.backends.base import KV_BLOCK
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.weights import WeightSource
from strata.decode.grammar import GrammarsBusy
from strata.decode.suffix import SuffixProposer
from strata.formats import open_model
from strata.guard.limits import TEMPLATE_WARD
from strata.machine.values import ValueFileError
from strata.memory.ledger import LedgerError
from strata.models import build_model
from strata.plan import Limits, Outline, Plan, Workload, from_json, to_json
from strata.plan.outline import outline
from strata.plan.planner import plan
from strata.server.service import Service
from strata.server.settings import Settings
from strata.synth import SHAPES, write_model
from support.described import machine
from support.weighing import settled_bytes

CONTEXT = 320
PROMPT = [int(t) for t in np.random.default_rng(5).integers(20, 250, 150)]
TASKS = Path("/proc/self/task")
ROOM = 300 * 10**6
"""Bytes for everything that comes to this process."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with a window of 8 positions and one without."""
    golden = make_tiny_models.golden("olmo3")
    golden = replace(golden, config=golden.config | {"max_position_embeddings": 8192})
    path = make_tiny_models.write_directory(tmp_path_factory.mktemp("tiny") / "olmo3", golden)
    (path / "chat_template.jinja").write_text("{{ messages }}, which nobody knows")
    return path


@pytest.fixture(scope="module")
def sizes(path: Path) -> Outline:
    with open_model(path) as file:
        model = build_model(file)
        return outline(path.name, model, file, CpuBackend.profile(model, WeightSource(file)))


def planned(sizes: Outline, work: Workload, **limits: Any) -> Plan:
    """A Plan for this process, with room for everything."""
    host = replace(machine("laptop"), isa=available_isas()[0], cores=2)
    process = settled_bytes()
    return plan(sizes, host, Limits(process + ROOM, 2, process_bytes=process, **limits), work)


@pytest.fixture(scope="module")
def base(sizes: Outline) -> Plan:
    """One in which the feed-forward parts stream through a ring buffer of small tiles."""
    made = planned(sizes, Workload(100, 2, CONTEXT, 20))
    streamed = tuple(name for name in made.resident if name.endswith("ffn"))
    return replace(
        made,
        resident=tuple(name for name in made.resident if name not in streamed),
        streamed=streamed,
        ring_bytes=1 << 18,
        tile_bytes=56 << 10,
        read_mode="buffered",
        request_bytes=1 << 16,
        io_threads=2,
        max_tokens=64,
        logit_rows=4,
        prefill_budget=(),
        draft_tokens=6,
        history_tokens=500,
        grammars=2,
        template_bytes=10 << 20,
        admitted_bytes=7_000_000,
    )


# What is in force, as the field itself would say it. ----------------------------------------------


def cpu(llm: LLM) -> CpuBackend:
    backend = llm.runtime.backend
    assert isinstance(backend, CpuBackend)
    return backend


def largest_tile(llm: LLM) -> int:
    """Its bytes in the ring buffer."""
    tracks = [s.track for s in llm.engine.runner.loaded if s.track]  # type: ignore[attr-defined]
    return int(_native.stream_memory(tracks)[0])


def bytes_of_a_sweep(llm: LLM) -> int:
    before = cpu(llm).stats().used
    llm.generate([1], SamplingParams(max_tokens=1))
    return cpu(llm).stats().used - before


def largest_step(llm: LLM) -> int:
    return max(rows for rows, _ in steps(llm, PROMPT))


def steps(llm: LLM, *prompts: list[int], tokens: int = 1) -> Iterator[tuple[int, int]]:
    """Tokens and running requests of each step; a prompt comes in once those before have tokens."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    waiting = list(prompts)
    while waiting or llm.engine.busy:
        if waiting:
            request = llm.engine.submit(waiting.pop(0), params)
        while llm.engine.busy:
            llm.engine.step()
            status = llm.engine.status()
            assert status.last is not None
            yield status.last.tokens, status.running
            if waiting and request.output:
                break


def rows_of_the_head(llm: LLM) -> int:
    """Rows of logits that are there at a time, where many are wanted."""
    runner, seen = llm.engine.runner, []
    run = runner.run

    def watched(*step: Any) -> Iterator[Any]:
        for logits in run(*step):
            seen.append(len(logits))
            yield logits

    runner.run = watched  # type: ignore[method-assign]
    llm.engine.logprobs(PROMPT, 0)
    runner.run = run  # type: ignore[method-assign]
    return max(seen)


def beside_an_answer(llm: LLM) -> tuple[int, ...]:
    """Tokens of a prompt in a step beside an answer; empty where it is as many as there is room."""
    llm.engine.forget_prefixes()
    drafting = llm.engine.drafting
    assert drafting is not None
    # What is guessed for the answer would be rows as well.
    drafting.enabled = False
    most = max(rows - 1 for rows, running in steps(llm, [1], PROMPT, tokens=12) if running == 2)
    drafting.enabled = True
    return () if most == llm.engine.token_budget - 1 else (most,)


def guessed_together(llm: LLM) -> int:
    """Tokens guessed at most in a step of one answer, where costs do not count."""
    drafting = llm.engine.drafting
    assert drafting is not None
    before, drafting.costs = drafting.costs, None
    # The first one is the prompt's.
    _, *answering = steps(llm, [1, 2, 3] * 9, tokens=30)
    most = max(rows - 1 for rows, _ in answering)
    drafting.costs = before
    return most


def remembered(llm: LLM) -> int:
    """Tokens of earlier texts that are kept."""
    drafting = llm.engine.drafting
    assert drafting is not None
    assert isinstance(drafting.proposer, SuffixProposer)
    assert drafting.proposer.history is not None
    return drafting.proposer.history.capacity


def pools(llm: LLM) -> tuple[int, ...]:
    return tuple(pool.blocks for pool in llm.engine._memory.manager.pools)


def longest(llm: LLM) -> int:
    """Positions that the longest request has."""
    most = llm.engine.limit([1], SamplingParams()) + 1
    with pytest.raises(UsageError, match="context"):
        llm.generate([1] * most, SamplingParams(max_tokens=1))
    return most


def together(llm: LLM) -> int:
    """Requests that run at a time, where many wait."""
    for first in range(2, 8):
        llm.engine.submit([first], SamplingParams(max_tokens=2, ignore_eos=True))
    llm.engine.step()
    running = llm.engine.status().running
    while llm.engine.busy:
        llm.engine.step()
    return running


def read_mode(llm: LLM) -> str:
    """As asked for: a file system may have no direct reads."""
    return "direct" if cpu(llm).settings.reading.direct else "buffered"


def kv_type(llm: LLM) -> str:
    """The one whose blocks take as many bytes as those that are there, by its name."""
    groups, state = llm.model.groups, llm.model.state
    kept = llm.engine.kv_type
    each = [kept.block_nbytes(state, group) for group in groups]
    assert llm.ledger.owned["kv"] == sum(n * b for n, b in zip(pools(llm), each, strict=True))
    return kept.name


@contextmanager
def serving(llm: LLM) -> Iterator[Service]:
    yield Service(llm, ["it"], Settings())
    # It is part of cycles, and holds the model's threads.
    gc.collect()


def bytes_for_requests(llm: LLM) -> int:
    with serving(llm) as service:
        return service.admission.capacity


def grammars_at_once(llm: LLM) -> int:
    """As many as are compiled and used until there is no room."""
    used = []
    with serving(llm) as service, suppress(GrammarsBusy):
        compiler = service.grammars
        for n in range(9):
            used.append(compiler.regex(f"a{{{n}}}"))
    return len(used)


def bytes_of_a_ward(llm: LLM) -> int:
    """Of one for templates, beside what it copies: what it takes from the ledger."""
    renderer = llm.tokenizer.renderer
    assert renderer is not None
    renderer.render("{{ 1 }}", {})
    assert renderer.ward is not None
    held = llm.ledger.owned["guard"]
    renderer.ward.end()
    return held - llm.ledger.owned["guard"] - TEMPLATE_WARD


def window_beside_a_beginning(llm: LLM) -> str:
    kept = {f"{s.window}:{s.beginning}" for s in llm.model.state if getattr(s, "beginning", 0)}
    return kept.pop() if kept else ""


SEEN: Mapping[str, Callable[[LLM], object]] = {
    "budget": lambda llm: llm.ledger.budget,
    "ring_bytes": lambda llm: llm.ledger.owned["ring"],
    "read_mode": read_mode,
    "io_threads": lambda llm: cpu(llm).settings.reading.threads,
    "max_tokens": largest_step,
    "logit_rows": rows_of_the_head,
    "kv_blocks": pools,
    "kv_slots": lambda llm: llm.engine._memory.state.slots,  # type: ignore[attr-defined]
    "prefill_budget": beside_an_answer,
    "draft_tokens": guessed_together,
    "history_tokens": remembered,
    "kv_type": kv_type,
    "kv_window": window_beside_a_beginning,
    "kv_read": lambda llm: max(getattr(layer, "read", 0) for layer in llm.model.state),
    "activations": lambda llm: cpu(llm).settings.activations,
    "context": longest,
    "parallel": together,
    "threads": lambda llm: llm.threads,
    "isa": lambda llm: llm.isa,
    "grammars": grammars_at_once,
    "template_bytes": bytes_of_a_ward,
    "admitted_bytes": bytes_for_requests,
}
"""What a run shows of a field: the field's own value."""

LOADED: Mapping[str, Callable[[LLM], int]] = {
    "resident": lambda llm: llm.ledger.owned["weights"],
    "streamed": bytes_of_a_sweep,
    "tile_bytes": largest_tile,
    "request_bytes": lambda llm: int(cpu(llm)._reader.counters.reads),
    "predicted": lambda llm: llm.ledger.margin,
}
"""The same for fields whose value is not a number that a run could show."""

ELSEWHERE = {
    "row_cache_bytes": "test_rows_are_kept_in_what_the_plan_says",
    "expert_slots": "test_slots_for_experts_are_those_of_the_plan",
    "expert_ahead": "test_slots_for_experts_are_those_of_the_plan",
    "expert_decay": "test_slots_for_experts_are_those_of_the_plan",
    "expert_sure": "test_slots_for_experts_are_those_of_the_plan",
}
"""Fields that are in force for other models only, and where that is seen."""

REFUSED = {"version": "what the other fields mean"}
"""Fields of which only one value can be executed."""

DESCRIBING = {
    "model": "a name for people; the units say whether the Plan is for a model",
    "choices": "reasons for people",
}


def changes(plan: Plan, field: str) -> dict[str, Any]:
    """Another value of a field, and what has to go with it."""
    least, memory = available_isas()[-1], plan.predicted.memory
    moved = plan.streamed[-1:]
    units = {"resident": (*plan.resident, *moved), "streamed": plan.streamed[:-1]}
    return {
        "resident": units,
        "streamed": units,
        "budget": {"budget": plan.budget + 12345},
        "ring_bytes": {"ring_bytes": 2 * plan.ring_bytes},
        "tile_bytes": {"tile_bytes": 40 << 10},
        "read_mode": {"read_mode": "direct"},
        "request_bytes": {"request_bytes": 4096},
        "io_threads": {"io_threads": 5},
        "max_tokens": {"max_tokens": 48},
        "logit_rows": {"logit_rows": 3},
        "kv_blocks": {"kv_blocks": tuple(n + 3 + i for i, n in enumerate(plan.kv_blocks))},
        "kv_slots": {"kv_slots": 9},
        "prefill_budget": {"prefill_budget": (7,)},
        "draft_tokens": {"draft_tokens": 5},
        "history_tokens": {"history_tokens": 300},
        "kv_type": {"kv_type": "q8_0"},
        "kv_window": {"kv_window": "600:5"},
        "kv_read": {"kv_read": 320},
        "activations": {"activations": "int16"},
        "context": {"context": plan.context - 100},
        "parallel": {"parallel": plan.parallel + 1},
        "grammars": {"grammars": 1},
        "template_bytes": {"template_bytes": 9 << 20},
        "admitted_bytes": {"admitted_bytes": 5_000_000},
        "threads": {"threads": 1},
        "isa": {"isa": least},
        "predicted": {
            "predicted": replace(plan.predicted, memory=replace(memory, margin=memory.margin + 1))
        },
        "version": {"version": plan.version + 1},
    }[field]


def test_no_field_is_forgotten() -> None:
    known = [*SEEN, *LOADED, *ELSEWHERE, *REFUSED, *DESCRIBING]
    assert sorted(known) == sorted(f.name for f in fields(Plan))


@pytest.fixture(scope="module")
def running(path: Path, base: Plan) -> Iterator[LLM]:
    with LLM(path, plan=base) as llm:
        yield llm


@pytest.mark.parametrize("field", SEEN)
def test_a_field_is_in_force(path: Path, base: Plan, running: LLM, field: str) -> None:
    changed = replace(base, **changes(base, field))
    if field == "isa" and len(available_isas()) == 1:
        pytest.skip("there is one instruction set")
    assert SEEN[field](running) == getattr(base, field) != getattr(changed, field)
    with LLM(path, plan=changed) as llm:
        assert SEEN[field](llm) == getattr(changed, field)


@pytest.mark.skipif(not TASKS.exists(), reason="the system does not count threads")
@pytest.mark.parametrize(("threads", "io_threads"), [(1, 1), (2, 1), (1, 5), (3, 4)])
def test_the_system_counts_as_many_threads(
    path: Path, base: Plan, running: LLM, threads: int, io_threads: int
) -> None:
    running.generate([1], SamplingParams(max_tokens=1))
    before = len(list(TASKS.iterdir()))
    with LLM(path, plan=replace(base, threads=threads, io_threads=io_threads)) as llm:
        llm.generate([1], SamplingParams(max_tokens=1))
        # The one that calls computes as well.
        assert len(list(TASKS.iterdir())) - before == threads - 1 + io_threads


def expected(sizes: Outline, plan: Plan, field: str) -> int | None:
    """What a run should show of a field; None where only that it changes is known."""
    units = {unit.name: unit for unit in sizes.units}
    if field == "resident":
        return sizes.vector_bytes + sum(units[n].packed_bytes for n in plan.resident)
    if field == "streamed":
        return sum(units[n].streamed_bytes for n in plan.streamed)
    return plan.predicted.memory.margin if field == "predicted" else None


@pytest.mark.parametrize("field", LOADED)
def test_a_field_has_its_effect(
    path: Path, sizes: Outline, base: Plan, running: LLM, field: str
) -> None:
    changed = replace(base, **changes(base, field))
    before = LOADED[field](running)
    with LLM(path, plan=changed) as llm:
        after = LOADED[field](llm)
    assert before != after
    for made, seen in ((base, before), (changed, after)):
        assert expected(sizes, made, field) in (None, seen)
    # Smaller requests are more; of tiles this is the largest, which is of whole panels.
    if field == "request_bytes":
        assert before < after
    if field == "tile_bytes":
        assert after < before <= base.tile_bytes
        assert after <= changed.tile_bytes


def test_the_budget_of_a_plan_is_held(path: Path, base: Plan) -> None:
    with pytest.raises(LedgerError, match=r"more than the .* given"):
        LLM(path, plan=replace(base, budget=settled_bytes() + 1000))


def test_a_longer_context_than_the_usual_one(path: Path, base: Plan) -> None:
    plan = replace(base, context=5000, kv_blocks=(-(-5000 // KV_BLOCK), base.kv_blocks[1]))
    with LLM(path, plan=plan) as llm:
        assert llm.context == llm.wanted_context == 5000


@pytest.mark.parametrize("kv_bytes", [100_000, 150_000, 200_000])
def test_a_plan_limited_by_kv_bytes_has_its_blocks(
    path: Path, sizes: Outline, kv_bytes: int
) -> None:
    plan = planned(sizes, Workload(100, 8, CONTEXT, 20), kv_bytes=kv_bytes)
    most = planned(sizes, Workload(100, 8, CONTEXT, 20))
    assert all(n < m for n, m in zip(plan.kv_blocks, most.kv_blocks, strict=True))
    # None of the options by which the Plan was made is said again, and others do not count.
    with LLM(path, plan=plan, kv_bytes="1GB", parallel=3, context=64) as llm:
        assert pools(llm) == plan.kv_blocks
        assert llm.engine.kv_bytes == llm.ledger.owned["kv"] == plan.predicted.memory.kv <= kv_bytes
        prompts = [[i, *PROMPT] for i in range(8)]
        params = SamplingParams(max_tokens=3, logprobs=1, ignore_eos=True)
        limited = [output.logprobs for output in llm.generate(prompts, params)]
        llm.engine.check_integrity()
    with LLM(path, plan=most) as llm:
        assert [output.logprobs for output in llm.generate(prompts, params)] == limited


@pytest.mark.parametrize("blocks", [(4, 5), (5, 1), (10,), (10, 5, 1)])
def test_blocks_that_hold_no_request_are_refused(
    path: Path, base: Plan, blocks: tuple[int, ...]
) -> None:
    what = "another model" if len(blocks) != 2 else "do not hold a context of 320"
    with pytest.raises(UsageError, match=what):
        LLM(path, plan=replace(base, kv_blocks=blocks))


def test_a_plan_of_another_format_is_refused(path: Path, base: Plan) -> None:
    data = to_json(base)
    assert from_json(Plan, data) == base
    # Older ones have other fields; the version is what is said.
    for version in (base.version - 1, base.version + 1, None, "3"):
        other = {**data, "version": version, "kv_blocks": 12, "kept": []}
        with pytest.raises(ValueFileError, match=f"Plan has format version {version!r}, and only"):
            from_json(Plan, other)
    with pytest.raises(UsageError, match="this plan has format version"):
        LLM(path, plan=replace(base, version=base.version - 1))


def test_rows_are_kept_in_what_the_plan_says(path: Path, base: Plan) -> None:
    resident = tuple(name for name in base.resident if name != "embed")
    without = replace(base, resident=resident, streamed=("embed", *base.streamed))
    params = SamplingParams(max_tokens=4, logprobs=1, ignore_eos=True)
    answers = []
    for nbytes in (0, 1 << 16):
        with LLM(path, plan=replace(without, row_cache_bytes=nbytes)) as llm:
            answers.append([o.logprobs for o in llm.generate([PROMPT, PROMPT], params)])
            assert llm.ledger.owned.get("rows", 0) == nbytes
            assert (cpu(llm).stats().row_hits > 0) == (nbytes > 0)
            llm.runtime.check_integrity()
    assert answers[0] == answers[1]


def test_slots_for_experts_are_those_of_the_plan(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with open_model(smollm2_path) as source:
        tokenizer = dict(source.metadata)
        write_model(SHAPES["tiny-qwen3moe"], path, recipe="Q4_K_M", tokenizer=tokenizer)
    with open_model(path) as file:
        model = build_model(file)
        profile = CpuBackend.profile(model, WeightSource(file))
        sizes = outline(path.name, model, file, profile)
    everything = planned(sizes, Workload(20, 2, 64, 20))
    assert everything.expert_slots == 0
    routed = tuple(unit.name for unit in profile.units if unit.reads == "routed")
    prompts = [[21, 22, 23, 24, 25], [27, 26]]
    params = SamplingParams(max_tokens=12, logprobs=2, ignore_eos=True)
    with LLM(path, plan=everything) as llm:
        want = [output.logprobs for output in llm.generate(prompts, params)]
    misses = []
    for slots, ahead, decay in ((2, 0, 0.9), (3, 1, 0.99), (profile.experts, 0, 1.0)):
        resident = tuple(name for name in everything.resident if name not in routed)
        made = replace(everything, resident=resident, streamed=routed, io_threads=3)
        made = replace(made, expert_slots=slots, expert_ahead=ahead, expert_decay=decay)
        made = replace(made, expert_sure=slots // 4)
        with LLM(path, plan=made) as llm:
            assert [output.logprobs for output in llm.generate(prompts, params)] == want
            assert llm.ledger.owned["experts"] == slots * profile.slot_bytes
            assert "ring" not in llm.ledger.owned
            assert cpu(llm)._experts.decay == decay  # type: ignore[union-attr]
            assert cpu(llm)._experts.sure == slots // 4  # type: ignore[union-attr]
            misses.append(cpu(llm).stats().expert_misses)
            assert (cpu(llm).stats().foreseen > 0) == (ahead > 0)
            llm.runtime.check_integrity()
    assert misses[0] > misses[2]
    assert misses[2] <= profile.experts
