"""Keys and values that are partly on disk: the same bits, whatever lies where, and one clear line
when the disk fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import KV_BLOCK
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES, choose_kv_type
from strata.backends.settings import BackendSettings, Reading
from strata.backends.weights import WeightReadError
from strata.errors import UsageError
from strata.program import LayerState, PagedKV, Shared
from support.hybrid_model import VOCABULARY, hybrid_model
from support.state_runs import Branching, StateRuns
from support.streaming import faults

Floats = NDArray[np.float32]
ROWS = 160
# Blocks that a step of so many rows of three sequences may write.
LEAST = ROWS // KV_BLOCK + 2 * 3 + 1
ATTENDING: tuple[LayerState, ...] = (
    PagedKV(2, 16, 16),
    PagedKV(1, 16, 16, window=100),
    PagedKV(1, 40, 32, v_in_k=True),
    Shared(0),
)


def runs_of(
    slots: int,
    folder: Path,
    state: Sequence[LayerState] | None = None,
    kv_type: str = "f16",
    threads: int = 2,
) -> StateRuns:
    """The small model with all kinds of state; 0 slots keep all KV in memory."""
    model, weights = hybrid_model() if state is None else hybrid_model(state)
    how = BackendSettings(
        max_tokens=ROWS,
        max_logit_rows=ROWS,
        kv_slots=slots,
        kv_directory=str(folder),
        reading=Reading(threads=3),
    )
    backend = CpuBackend(threads=threads, settings=how)
    kept = choose_kv_type(kv_type, KV_TYPES)
    return StateRuns(model, weights, backend, blocks=90, kv_type=kept)


def schedule(seed: int, steps: int) -> list[list[tuple[int, list[int]]]]:
    """Steps of three sequences: which advance, by which tokens; the first grows beyond a split."""
    random = np.random.default_rng(seed)
    out = []
    for step in range(steps):
        work = []
        for number, most in enumerate((90, 30, 40)):
            if number and random.random() < 0.3:
                continue
            rows = 1 if step % 3 == 2 else int(random.integers(1, most))
            work.append((number, random.integers(0, VOCABULARY, rows).tolist()))
        out.append(work)
    return out


def logits_of(runs: StateRuns, steps: Sequence[Sequence[tuple[int, list[int]]]]) -> list[bytes]:
    sequences = [runs.sequence() for _ in range(3)]
    out = []
    for work in steps:
        out += [x.tobytes() for x in runs.run([(sequences[n], list(t)) for n, t in work])]
    return out


@contextmanager
def refused(at: int) -> Iterator[None]:
    _native.fail_after("write", at, False)
    try:
        yield
    finally:
        _native.fail_after("write", 0, False)


@pytest.mark.parametrize("kv_type", [*(t.name for t in KV_TYPES), "q8_0:int4,0=int4:f16"])
@pytest.mark.parametrize("slots", [LEAST, LEAST + 9])
def test_bits_are_those_of_memory(kv_type: str, slots: int, tmp_path: Path) -> None:
    """All kinds of state, three sequences of up to 1,600 positions, blocks coming and going."""
    steps = schedule(slots, 40)
    want = logits_of(runs_of(0, tmp_path, kv_type=kv_type), steps)
    runs = runs_of(slots, tmp_path, kv_type=kv_type)
    with faults(delay_us=200, seed=slots):
        assert logits_of(runs, steps) == want
    state = runs.state.native  # type: ignore[attr-defined]
    assert state.read_bytes > 0
    assert state.written_bytes > 0


def test_branches_find_their_blocks(tmp_path: Path) -> None:
    def run(runs: StateRuns) -> list[bytes]:
        random = np.random.default_rng(4)
        first, out = runs.sequence(), []
        for rows in (150, 160, 140, 160, 130):
            out += runs.run([(first, random.integers(0, VOCABULARY, rows).tolist())])
        for _ in range(4):
            chain = random.integers(0, VOCABULARY, 3).tolist()
            branch = runs.branch(first, first.length + 2, 0)
            out += runs.run([(first, chain), (branch, random.integers(0, VOCABULARY, 5).tolist())])
        return [x.tobytes() for x in out]

    assert run(runs_of(LEAST, tmp_path, ATTENDING)) == run(runs_of(0, tmp_path, ATTENDING))


def test_a_sequence_that_slept_goes_on_where_it_was(tmp_path: Path) -> None:
    """Its blocks gave way to another's, whole, and come back."""

    def run(runs: StateRuns) -> list[bytes]:
        random = np.random.default_rng(5)
        one, other = runs.sequence(), runs.sequence()
        out = []
        for sequence, count in ((one, 4), (other, 5), (one, 1)):
            for _ in range(count):
                out += runs.run([(sequence, random.integers(0, VOCABULARY, 120).tolist())])
        for _ in range(3):
            out += runs.run([(one, [7])])
        return [x.tobytes() for x in out]

    runs = runs_of(14, tmp_path)
    assert run(runs) == run(runs_of(0, tmp_path))


def test_what_another_thread_reads_and_writes_is_where_it_should_be(tmp_path: Path) -> None:
    """As the store of prefixes does: blocks that are in memory and blocks that are not."""
    plain, tiered = runs_of(0, tmp_path), runs_of(LEAST, tmp_path)
    tables: list[Branching] = []
    for runs in (plain, tiered):
        sequence = runs.sequence()
        random = np.random.default_rng(6)
        for _ in range(12):
            runs.run([(sequence, random.integers(0, VOCABULARY, 150).tolist())])
        tables.append(sequence)
    for block in tables[0].tables[0][:-1]:
        one = np.empty(plain.state.block_nbytes(0), np.uint8)
        other = np.empty_like(one)
        plain.state.read(0, block, one)
        tiered.state.read(0, block, other)
        assert (one == other).all()
    random = np.random.default_rng(7)
    for target, source in ((80, tables[1].tables[0][0]), (81, tables[1].tables[0][-2])):
        data = random.integers(0, 255, tiered.state.block_nbytes(0)).astype(np.uint8)
        tiered.state.write(0, source, data)
        tiered.state.copy(0, source, target)
        back = np.empty_like(data)
        tiered.state.read(0, target, back)
        assert (back == data).all()


@pytest.mark.parametrize("offset", [0, 8])
def test_threads_write_blocks_that_are_on_disk_together(tmp_path: Path, offset: int) -> None:
    """Pieces that are whole pages go to the file from where they lie, others by way of memory of
    the tier's own."""
    state: tuple[LayerState, ...] = (PagedKV(2, 16, 16), PagedKV(1, 40, 32, v_in_k=True))
    tiered = runs_of(LEAST, tmp_path, state)
    nbytes, random = tiered.state.block_nbytes(0), np.random.default_rng(11)
    data = random.integers(0, 255, (40, nbytes)).astype(np.uint8)

    def write(number: int) -> None:
        room = np.empty(nbytes + 2 * 4096, np.uint8)
        at = -room.ctypes.data % 4096 + offset
        room[at : at + nbytes] = data[number]
        tiered.state.write(0, 20 + number, room[at : at + nbytes])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    back = np.empty(nbytes, np.uint8)
    for number in range(40):
        tiered.state.read(0, 20 + number, back)
        assert (back == data[number]).all()


def test_nothing_is_read_that_is_not_used(tmp_path: Path) -> None:
    """What is read does not depend on time: a layer's part of each block that is not there."""

    def read(delay_us: int) -> int:
        runs = runs_of(LEAST, tmp_path)
        with faults(delay_us=delay_us, seed=1):
            logits_of(runs, schedule(3, 30))
        return int(runs.state.native.read_bytes)  # type: ignore[attr-defined]

    assert read(0) == read(300) > 0


# One fault a test: what a failed step had asked for ahead may be read until the next one begins.
@pytest.mark.parametrize("kind", ["fail_at", "cut_at"])
@pytest.mark.parametrize("at", [1, 5])
def test_a_failed_read_is_one_line_and_the_next_step_goes_on(
    at: int, kind: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(8)
    texts = [random.integers(0, VOCABULARY, 150).tolist() for _ in range(12)]
    plain, tiered = runs_of(0, tmp_path), runs_of(LEAST, tmp_path)
    one, other = plain.sequence(), tiered.sequence()
    for text in texts[:10]:
        plain.run([(one, text)])
        tiered.run([(other, text)])
    with faults(**{kind: at}), pytest.raises(WeightReadError, match="KV on disk") as caught:
        tiered.run([(other, texts[10])])
    assert "\n" not in str(caught.value)
    (want,), (found,) = plain.run([(one, texts[10])]), tiered.run([(other, texts[10])])
    assert found.tobytes() == want.tobytes()


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    texts = [random.integers(0, VOCABULARY, 150).tolist() for _ in range(12)]
    plain, tiered = runs_of(0, tmp_path), runs_of(LEAST, tmp_path)
    one, other = plain.sequence(), tiered.sequence()
    for number, text in enumerate(texts):
        (want,) = plain.run([(one, text)])
        if number > 5:
            with refused(2), pytest.raises(WeightReadError, match="No space left") as caught:
                tiered.run([(other, text)])
            assert "\n" not in str(caught.value)
        (found,) = tiered.run([(other, text)])
        assert found.tobytes() == want.tobytes()


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file can be made in .*/nowhere"):
        runs_of(LEAST, tmp_path / "nowhere")
    with refused(1), pytest.raises(UsageError, match=r"KV on disk takes .* No space left"):
        runs_of(LEAST, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_file_is_ever_seen(tmp_path: Path) -> None:
    runs = runs_of(LEAST, tmp_path)
    logits_of(runs, schedule(1, 6))
    assert not list(tmp_path.iterdir())


def test_a_step_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    runs = runs_of(2, tmp_path)
    with pytest.raises(WeightReadError, match="give more memory"):
        runs.run([(runs.sequence(), [1] * 150)])
