"""Bytes read are the bytes that are not resident: ours, and those that the system counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import BackendStats
from strata.backends.cpu.backend import CpuBackend
from strata.formats import ModelFile, open_model
from strata.models import build_model
from support.forward import Forward
from support.streaming import forward, settings, units

TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 10)]
BLOCK = 4096


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[ModelFile]:
    with open_model(smollm2_path) as file:
        yield file


def stats(run: Forward) -> BackendStats:
    return run.backend.stats()


def at_rest(look: Callable[[], int]) -> int:
    """A number that has stopped growing: the readers have filled the ring."""
    seen = -1
    for _ in range(200):
        now = look()
        if now == seen:
            return now
        seen = now
        time.sleep(0.05)
    raise AssertionError("reading never comes to rest")


def matrix_bytes(model: ModelFile, names: set[str]) -> int:
    """Bytes of the matrices of some units but the one of which rows are looked up."""
    return sum(
        model.tensors[w.source].nbytes
        for s in build_model(model).segments
        for unit in s.units
        if unit.name in names and unit.reads == "all"
        for w in unit.weights
    )


@pytest.mark.parametrize("direct", [False, True])
def test_a_sweep_reads_what_is_not_resident(model: ModelFile, direct: bool) -> None:
    names = set(units(model)) - {"layer.0.attention", "layer.0.ffn", "layer.7.ffn", "layer.8.ffn"}
    ring = 2 << 20
    run = forward(
        model, settings(sorted(names), ring=ring, tile=1 << 19, request=1 << 18, direct=direct)
    )
    sweeps = 0
    for chunks in ([len(TOKENS)], [4, 6], [1] * len(TOKENS)):
        run.logits(TOKENS, chunks)
        sweeps += len(chunks)
        used = sweeps * matrix_bytes(model, names)
        assert stats(run).used == used
        # And nothing was read twice: beyond what was used there is only what the ring holds.
        assert 0 < at_rest(lambda: stats(run).wanted) - used <= ring


def test_rows_of_the_embedding_are_fetched_one_by_one(model: ModelFile) -> None:
    run = forward(model, settings(["embed", "layer.0.ffn"]))
    run.logits(TOKENS)
    assert stats(run).row_reads == len(TOKENS)
    row = model.tensors["token_embd.weight"].nbytes // model.tensors["token_embd.weight"].shape[0]
    assert stats(run).rows == len(TOKENS) * row


@pytest.mark.parametrize("tied", [False, True])
def test_rows_that_are_still_there_are_not_read_again(model: ModelFile, tied: bool) -> None:
    """With the same bits; ``tied``: also where the head streams the same table."""
    streamed = units(model) if tied else ["embed", "layer.0.ffn"]
    want = forward(model, settings(streamed)).logits(TOKENS * 3)
    row = model.tensors["token_embd.weight"].nbytes // model.tensors["token_embd.weight"].shape[0]
    how = replace(settings(streamed), row_cache_bytes=64 * row)
    run = forward(model, how, threads=1)
    for again in range(1, 3):
        assert run.logits(TOKENS * 3).tobytes() == want.tobytes()
        assert stats(run).row_reads == len(set(TOKENS))
        assert stats(run).row_hits == again * 3 * len(TOKENS) - len(set(TOKENS))


def test_few_rows_are_kept_in_little_memory(model: ModelFile) -> None:
    """In as much as was asked for, the one that was looked up longest ago goes; less than a set of
    rows keeps none, and another budget begins anew."""
    row = model.tensors["token_embd.weight"].nbytes // model.tensors["token_embd.weight"].shape[0]
    one_set = 8 * (row + 16)
    tokens = [*range(20, 28), 20, 28, 20, 21, *range(22, 29)]
    # 20 is looked up again before 28 takes the place of 21, and so on in turn.
    reads = 8 + 1 + 1 + 7
    how = settings(units(model))
    plain = forward(model, how, threads=1)
    want = plain.logits(tokens, [1] * len(tokens))
    for nbytes, expected in ((one_set, reads), (one_set - 1, len(tokens))):
        run = forward(model, replace(how, row_cache_bytes=nbytes), threads=1)
        assert run.logits(tokens, [1] * len(tokens)).tobytes() == want.tobytes()
        assert stats(run).row_reads == expected
        assert isinstance(run.backend, CpuBackend)
        cache = run.backend._row_cache
        assert cache is not None
        assert cache.nbytes == (one_set if nbytes == one_set else 0)
    run.segments = run.backend.rearrange(how)
    assert run.logits(tokens).tobytes() == want.tobytes()
    assert run.backend._row_cache is None
    assert stats(run).row_reads == 2 * len(tokens)


def read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes:")))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count reads")
def test_the_system_counts_the_same(model: ModelFile) -> None:
    how = settings(units(model), ring=2 << 20, tile=1 << 19, request=1 << 18, direct=True)
    run = forward(model, how)
    assert isinstance(run.backend, CpuBackend)
    if not run.backend._reader.direct:
        pytest.skip("this file system has no direct reads")

    def ours() -> int:
        return stats(run).from_disk + stats(run).rows_from_disk

    run.logits(TOKENS)
    others = []
    for _ in range(5):
        at_rest(ours)
        before = read_bytes() - ours()
        run.logits(TOKENS)
        at_rest(ours)
        others.append(read_bytes() - ours() - before)
    # A process whose own pages were put aside reads some of them again; in a quiet moment it
    # reads what we count and nothing else.
    assert min(others) == 0
    s = stats(run)
    assert 0 <= s.from_disk - s.wanted <= 2 * BLOCK * s.reads
