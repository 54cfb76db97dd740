"""Whatever happens to a request on its way, its tokens are those it gets alone.

Wide random schedules over the fake model, whose next token is a hash of everything that KV holds
for the sequence: one wrong or missing position anywhere gives other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strata.backends.base import KV_BLOCK
from strata.backends.kv_types import F32
from strata.decode import SamplingParams
from strata.engine import Engine, KVSettings, Request, StoreSettings
from strata.engine.drafting import Drafting
from strata.errors import UsageError
from strata.kv.store_directory import StoreDirectory
from strata.program import LayerState, state_groups
from support.fake_model import FULL, STATES, VOCABULARY, FakeBackend, expected_tokens, fake_engine
from support.proposers import Oracle

CONTEXT = 512

PREFIXES = [[(7 * i * i + 3 * k) % VOCABULARY for i in range(400)] for k in range(3)]

Arrival = tuple[int, int, int, int, int]
arrivals = st.lists(
    st.tuples(
        st.integers(0, 2),  # which prefix
        st.integers(0, 300),  # how much of it
        st.integers(1, 40),  # tokens of its own, of few kinds so that prompts come twice
        st.integers(0, 3),
        st.integers(1, 100),  # tokens of the answer
    ),
    min_size=1,
    max_size=10,
)


def prompt_of(arrival: Arrival) -> list[int]:
    which, shared, own, kind, _ = arrival
    return PREFIXES[which][:shared] + [(kind * 5 + i) % VOCABULARY for i in range(own)]


def run(
    engine: Engine,
    work: list[Arrival],
    pauses: list[int],
    cancelled: set[int],
    state: Sequence[LayerState] = FULL,
) -> None:
    """Submit work with pauses of some steps between, cancel some of it, and check the answers."""
    requests: list[Request] = []

    def step() -> None:
        engine.step()
        engine.check_integrity()

    for number, arrival in enumerate(work):
        requests.append(engine.submit(prompt_of(arrival), SamplingParams(max_tokens=arrival[4])))
        for _ in range(pauses[number % len(pauses)]):
            step()
    for number in cancelled:
        if number < len(requests):
            engine.cancel(requests[number])
            engine.check_integrity()
    for _ in range(20_000):
        if not engine.busy:
            break
        step()
    assert not engine.busy
    for number, (request, arrival) in enumerate(zip(requests, work, strict=True)):
        got = [sample.token for sample in request.output]
        want = expected_tokens(prompt_of(arrival), arrival[4], state)
        if request.cancelled:
            assert number in cancelled
            assert got == want[: len(got)]
        else:
            assert got == want
        assert 0 <= request.cached_tokens <= len(request.prompt)
    for _ in range(1000):
        status = engine.status()
        if not status.kv_blocks_used:
            break
        sleep(0.01)  # some may be on their way to the disk
    assert status.kv_blocks_used == 0
    assert (status.running, status.waiting) == (0, 0)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    work=arrivals,
    pauses=st.lists(st.integers(0, 30), min_size=1, max_size=10),
    cancelled=st.sets(st.integers(0, 9), max_size=3),
    parallel=st.integers(1, 6),
    budget=st.sampled_from([6, 17, 64, 512]),
    spare=st.integers(0, 8),
    cache=st.booleans(),
    prefill_budget=st.sampled_from([(), (3,), (1, 9, 40)]),
    kept=st.sampled_from(sorted(STATES)),
    right=st.sampled_from([None, 0.0, 0.5, 0.9, 1.0]),
)
def test_any_schedule_gives_the_same_tokens(
    work: list[Arrival],
    pauses: list[int],
    cancelled: set[int],
    parallel: int,
    budget: int,
    spare: int,
    cache: bool,
    prefill_budget: tuple[int, ...],
    kept: str,
    right: float | None,
) -> None:
    state = STATES[kept]
    proposer = None if right is None else Oracle(lambda t: expected_tokens(t, 6, state), right)
    engine = small_engine(
        CONTEXT // KV_BLOCK + spare,
        parallel,
        budget,
        cache=cache,
        prefill_budget=prefill_budget,
        state=state,
        drafting=None if proposer is None else Drafting(proposer, most=7),
    )
    run(engine, work, pauses, cancelled, state)


def small_engine(
    blocks: int,
    parallel: int,
    budget: int,
    *,
    cache: bool = True,
    store: StoreSettings | None = None,
    backend: FakeBackend | None = None,
    state: Sequence[LayerState] = FULL,
    **options: Any,
) -> Engine:
    """An engine with so many blocks in each group, and slots for all, however many requests run."""
    groups = state_groups(state)
    counts = [2 * parallel + 4 if group.recurrent else blocks for group in groups]
    return fake_engine(
        backend,
        state,
        context=CONTEXT,
        parallel=parallel,
        token_budget=budget,
        kv=KVSettings(blocks=tuple(counts), prefix_cache=cache, store=store),
        **options,
    )


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    work=arrivals,
    again=arrivals,
    limit=st.sampled_from([3, 12, 1000]),
    kept=st.sampled_from(sorted(STATES)),
)
def test_prefixes_from_the_disk_give_the_same_tokens(
    tmp_path_factory: pytest.TempPathFactory,
    work: list[Arrival],
    again: list[Arrival],
    limit: int,
    kept: str,
) -> None:
    state = STATES[kept]
    directory = tmp_path_factory.mktemp("kv")
    store = StoreSettings(StoreDirectory(directory, limit * 8192), "fa" * 16, lambda: True)
    for jobs in (work, again):
        engine = small_engine(14, 3, 64, store=store, state=state)
        run(engine, jobs, [4], set(), state)
        engine.close()
        engine.check_integrity()


def test_a_batch_with_everything_at_once() -> None:
    """Preemption, forks, prefix hits, eviction, drafts and their branches all happen in one run,
    and are seen to."""
    backend = FakeBackend()
    proposer = Oracle(lambda tokens: expected_tokens(tokens, 6), 0.6)
    engine = small_engine(12, 6, 64, backend=backend, drafting=Drafting(proposer, most=8))
    work = [(0, 200, 5, 1, 90), (0, 200, 5, 1, 90), (0, 200, 5, 1, 90), (1, 150, 9, 2, 99)] * 3
    run(engine, work, [3, 0, 0, 9], set())
    status = engine.status()
    assert status.preemptions > 0
    assert 0 < status.draft_tokens_kept < status.draft_tokens <= proposer.proposed
    assert any(span.parent >= 0 for step in backend.steps for span in step.spans)
    assert status.prefix_hit_tokens > 0
    assert status.prefix_hit_tokens + status.prefix_miss_tokens == sum(
        len(prompt_of(a)) for a in work
    )


def test_the_naive_index_computes_everything() -> None:
    with_cache, without = (small_engine(24, 1, 64, cache=cache) for cache in (True, False))
    for engine in (with_cache, without):
        run(engine, [(0, 300, 5, 1, 3)] * 2, [50], set())
    # The last token of an answer is never computed.
    assert without.status().tokens == 2 * (305 + 2)
    assert with_cache.status().tokens == 2 * (305 + 2) - 305 // KV_BLOCK * KV_BLOCK
    assert without.status().prefix_hit_tokens == 0


def test_a_prompt_that_is_known_whole_still_computes_its_last_token() -> None:
    engine = small_engine(24, 1, 64)
    for length in (64, 65, 128, 256):
        for _ in range(2):
            run(engine, [(2, length - 1, 1, 0, 2)], [60], set())
            run(engine, [(2, length, 1, 0, 2)], [60], set())


def test_waste_is_less_than_a_block_a_sequence() -> None:
    engine = small_engine(40, 5, 64, cache=False)
    requests = [engine.submit(PREFIXES[i % 3][: 40 * i + 1], SamplingParams()) for i in range(5)]
    for _ in range(120):
        engine.step()
        held = engine.status().kv_blocks_used
        needed = sum(-(-engine.computed(r) // KV_BLOCK) for r in requests)
        assert needed <= held <= needed + len(requests)


def test_answers_to_one_prompt_share_it() -> None:
    engine = small_engine(40, 4, 512)
    params = [SamplingParams(max_tokens=30, temperature=1.0, seed=seed) for seed in range(4)]
    together = [engine.submit(PREFIXES[0], p) for p in params]
    before = engine.status().tokens
    engine.step()
    assert engine.status().tokens - before == 400
    while engine.busy:
        engine.step()
        engine.check_integrity()
    alone = []
    for p in params:
        engine = small_engine(40, 1, 512, cache=False)
        alone.append(engine.submit(PREFIXES[0], p))
        while engine.busy:
            engine.step()
    for one, other in zip(together, alone, strict=True):
        assert one.output == other.output
    assert len({tuple(s.token for s in r.output) for r in together}) == 4
    assert [r.cached_tokens for r in together] == [0, 399, 399, 399]


def test_kv_that_does_not_hold_a_context_is_refused() -> None:
    nbytes = 8 * F32.block_nbytes(FULL, state_groups(FULL)[0])
    fake_engine(context=CONTEXT, kv=KVSettings(nbytes=nbytes))
    with pytest.raises(UsageError, match="do not hold a context of 512"):
        fake_engine(context=CONTEXT, kv=KVSettings(nbytes=nbytes - 1))
    with pytest.raises(UsageError, match="no KV type 'f16'"):
        fake_engine(kv=KVSettings(type="f16"))


def test_what_is_forgotten_is_computed() -> None:
    engine = small_engine(24, 1, 512)
    tokens: Callable[[], int] = lambda: engine.status().tokens  # noqa: E731
    run(engine, [(0, 300, 5, 1, 1)], [9], set())
    run(engine, [(0, 300, 5, 1, 1)], [9], set())
    assert tokens() == 305 + 305 - 256
    engine.forget_prefixes()
    engine.check_integrity()
    assert engine.status().kv_blocks_cached == 0
    run(engine, [(0, 300, 5, 1, 1)], [9], set())
    assert tokens() == 305 + 305 - 256 + 305
