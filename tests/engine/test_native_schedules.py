"""Bits of a real model's answers on the native backend: alone, and whatever may happen on the way.

The twin of ``test_exact_schedules``, where schedules are many and the model is not real.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK, NoBooks
from strata.backends.cpu.backend import CpuBackend
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.decode import Sample, SamplingParams
from strata.decode.suffix import SuffixProposer, TokenHistory
from strata.engine import Engine, KVSettings, Request, Runner, StoreSettings
from strata.engine.drafting import Drafting
from strata.formats import open_model
from strata.formats.fingerprint import fingerprint
from strata.kv.store_directory import StoreDirectory
from strata.models import build_model

RANDOM = np.random.Generator(np.random.PCG64(3))
SHARED = RANDOM.integers(17, 49152, 150).tolist()
KV_TYPES = [t.name for t in CpuBackend.kv_types]
CONTEXT = 320

Job = tuple[list[int], SamplingParams]


def jobs(count: int) -> list[Job]:
    """Prompts of many lengths, most of which begin alike, two of them equal."""
    out: list[Job] = []
    for i in range(count):
        shared = int(RANDOM.integers(0, len(SHARED)))
        own = RANDOM.integers(17, 49152, int(RANDOM.integers(1, 60))).tolist()
        prompt = out[-1][0] if i % 8 == 5 else SHARED[:shared] + own
        temperature = 0.9 if i % 2 else 0.0
        length = int(RANDOM.integers(2, 14))
        params = SamplingParams(
            max_tokens=length, temperature=temperature, seed=i, logprobs=3, ignore_eos=True
        )
        out.append((prompt, params))
    return out


JOBS = jobs(12)


@pytest.fixture(scope="module")
def runner(smollm2_path: Path, backend: str) -> Iterator[Runner]:
    with open_model(smollm2_path) as file:
        chosen = backend_class(backend).create(2, None, BackendSettings(), NoBooks())
        yield Runner(chosen, build_model(file, CONTEXT), WeightSource(file))


@pytest.fixture(scope="module")
def streaming(smollm2_path: Path, backend: str) -> Iterator[Runner]:
    """The same weights, of which all but a few pass through a ring that holds some of them."""
    with open_model(smollm2_path) as file:
        model = build_model(file, CONTEXT)
        resident = ("layer.3.attention", "layer.3.ffn", "layer.20.ffn")
        units = (unit.name for segment in model.segments for unit in segment.units)
        names = frozenset(units) - {*resident}
        settings = BackendSettings(streamed=names, ring_bytes=24 << 20, tile_bytes=1 << 20)
        chosen = backend_class(backend).create(2, None, settings, NoBooks())
        yield Runner(chosen, model, WeightSource(file))


def engine(runner: Runner, kv: KVSettings, parallel: int, budget: int) -> Engine:
    return Engine(runner, context=CONTEXT, parallel=parallel, token_budget=budget, kv=kv)


def finish(e: Engine) -> None:
    while e.busy:
        e.step()
        e.check_integrity()
    for _ in range(500):
        if not e.status().kv_blocks_used:
            return
        sleep(0.01)
    raise AssertionError("blocks are held by nobody")


@pytest.fixture(scope="module")
def alone(runner: Runner) -> dict[str, list[list[Sample]]]:
    """Answers by KV type: one request at a time, every prompt in one piece, nothing shared."""
    out = {}
    for name in KV_TYPES:
        e = engine(runner, KVSettings(type=name, prefix_cache=False), 1, 512)
        answers = []
        for prompt, params in JOBS if name == "f16" else JOBS[:4]:
            request = e.submit(prompt, params)
            finish(e)
            answers.append(request.output)
        out[name] = answers
    assert out["f16"][0] != out["q8_0"][0]
    return out


def run(e: Engine, work: list[Job], seed: int, cancel: int = 0) -> list[Request]:
    """Submit with random pauses; ``cancel`` further requests are ended at some time."""
    generator = np.random.default_rng(seed)
    requests, others = [], []
    for number in generator.permutation(len(work)):
        requests.append((int(number), e.submit(*work[number])))
        for _ in range(int(generator.integers(0, 4))):
            e.step()
            e.check_integrity()
        if len(others) < cancel:
            others.append(e.submit(work[number][0][:99], work[number][1]))
            e.step()
    for other in others:
        e.cancel(other)
        e.check_integrity()
    finish(e)
    return [request for _, request in sorted(requests, key=lambda pair: pair[0])]


@pytest.mark.parametrize(
    ("budget", "parallel", "blocks", "cache"),
    [
        pytest.param(512, 16, 80, True, marks=pytest.mark.slow),
        pytest.param(61, 16, 80, False, marks=pytest.mark.slow),
        (40, 16, 11, True),
        pytest.param(100, 5, 7, False, marks=pytest.mark.slow),
    ],
)
def test_a_batch_with_random_arrivals(
    runner: Runner,
    alone: dict[str, list[list[Sample]]],
    budget: int,
    parallel: int,
    blocks: int,
    cache: bool,
) -> None:
    block = CpuBackend.kv_types[0].block_nbytes(runner.model.state, runner.model.groups[0])
    e = engine(runner, KVSettings(nbytes=blocks * block, prefix_cache=cache), parallel, budget)
    requests = run(e, JOBS, seed=budget, cancel=3)
    assert [r.output for r in requests] == alone["f16"]


@pytest.mark.parametrize(
    ("budget", "blocks"), [pytest.param(512, 80, marks=pytest.mark.slow), (40, 11)]
)
def test_a_batch_on_streamed_weights(
    streaming: Runner, alone: dict[str, list[list[Sample]]], budget: int, blocks: int
) -> None:
    block = CpuBackend.kv_types[0].block_nbytes(streaming.model.state, streaming.model.groups[0])
    e = engine(streaming, KVSettings(nbytes=blocks * block), 16, budget)
    assert [r.output for r in run(e, JOBS, seed=5, cancel=2)] == alone["f16"]


def test_a_batch_with_words_looked_up(
    streaming: Runner, alone: dict[str, list[list[Sample]]]
) -> None:
    """In prompts and in earlier answers, whether it pays or not; some are ended."""
    drafting = Drafting(SuffixProposer(TokenHistory(4000)))
    block = CpuBackend.kv_types[0].block_nbytes(streaming.model.state, streaming.model.groups[0])
    e = Engine(
        streaming,
        context=CONTEXT,
        parallel=16,
        token_budget=64,
        kv=KVSettings(nbytes=12 * block),
        drafting=drafting,
    )
    assert [r.output for r in run(e, JOBS[:8], seed=5, cancel=2)] == alone["f16"][:8]
    assert 0 < e.status().draft_tokens_kept < e.status().draft_tokens


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("cache", [True, False])
def test_giving_way_and_going_on(
    runner: Runner, streaming: Runner, streamed: bool, cache: bool
) -> None:
    prompts = [SHARED[i : i + 62] for i in range(4)]
    params = SamplingParams(max_tokens=10, logprobs=2, ignore_eos=True)
    block = CpuBackend.kv_types[0].block_nbytes(runner.model.state, runner.model.groups[0])
    tight = engine(
        streaming if streamed else runner, KVSettings(nbytes=5 * block, prefix_cache=cache), 4, 512
    )
    requests = [tight.submit(prompt, params) for prompt in prompts]
    finish(tight)
    assert tight.status().preemptions > 0
    single = engine(runner, KVSettings(prefix_cache=False), 1, 512)
    for request, prompt in zip(requests, prompts, strict=True):
        one = single.submit(prompt, params)
        finish(single)
        assert one.output == request.output


@pytest.mark.parametrize("name", KV_TYPES[1:])
def test_other_kv_types(runner: Runner, alone: dict[str, list[list[Sample]]], name: str) -> None:
    e = engine(runner, KVSettings(type=name), 6, 50)
    assert [r.output for r in run(e, JOBS[:4], seed=1)] == alone[name]


def test_a_prefix_from_memory(runner: Runner, alone: dict[str, list[list[Sample]]]) -> None:
    e = engine(runner, KVSettings(), 4, 512)
    for _ in range(2):
        requests = run(e, JOBS[:4], seed=2)
        assert [r.output for r in requests] == alone["f16"][:4]
    whole = [(len(prompt) - 1) // KV_BLOCK * KV_BLOCK for prompt, _ in JOBS[:4]]
    # Who runs beside one with the same beginning goes on from where that is.
    assert all(r.cached_tokens >= least for r, least in zip(requests, whole, strict=True))
    assert max(whole) >= 2 * KV_BLOCK


def test_a_prefix_from_the_disk_after_a_restart(
    runner: Runner,
    alone: dict[str, list[list[Sample]]],
    smollm2_path: Path,
    tmp_path: Path,
) -> None:
    with open_model(smollm2_path) as file:
        directory = StoreDirectory(tmp_path, 1 << 30)
        store = StoreSettings(directory, fingerprint(file), lambda: True)
    for name in ("f16", "q8_0"):
        for restart in (False, True):
            e = engine(runner, KVSettings(type=name, store=store), 4, 512)
            requests = run(e, JOBS[:4], seed=2)
            e.close()
            assert [r.output for r in requests] == alone[name][:4]
            if restart:
                assert sum(r.cached_tokens for r in requests) >= 4 * KV_BLOCK
    # One name for each KV type.
    assert len({path.name[:32] for path in tmp_path.glob("*.kv")}) == 2


def test_answers_to_one_prompt(runner: Runner) -> None:
    prompt, params = (
        SHARED[:100],
        [SamplingParams(max_tokens=6, temperature=1.0, seed=s) for s in range(3)],
    )
    together = engine(runner, KVSettings(), 3, 512)
    requests = [together.submit(prompt, p) for p in params]
    finish(together)
    # The prompt once; of the others its last token, and all know what was chosen before.
    assert together.status().tokens == 100 + 2 + 3 * 5
    single = engine(runner, KVSettings(prefix_cache=False), 1, 512)
    for request, p in zip(requests, params, strict=True):
        one = single.submit(prompt, p)
        finish(single)
        assert one.output == request.output


def test_where_a_sweep_is_can_be_seen(runner: Runner) -> None:
    e = engine(runner, KVSettings(), 1, 512)
    e.submit(SHARED[:60], SamplingParams(max_tokens=40, ignore_eos=True))
    seen = set()
    with ThreadPoolExecutor(1) as other:
        work = other.submit(finish, e)
        while not work.done():
            seen.add(runner.segment)
    work.result()
    # A short sweep is one native call, in which nothing comes back to Python.
    assert len(seen - {None}) > 3
    assert runner.segment is None
