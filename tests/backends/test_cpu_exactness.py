"""Bits of the real model's logits do not change with the cut, the threads or the company."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.models import build_model

Tokens = NDArray[np.int32]
TOKENS: Tokens = np.random.default_rng(5).integers(17, 49152, 150).astype(np.int32)
TABLE = np.array([4, 0, 2, 7], np.int32)
ISAS = [isa for isa in available_isas() if isa != "scalar"] or ["scalar"]


class Runs:
    """The model on one backend, with a fresh KV cache for every run."""

    def __init__(self, file: ModelFile, backend: CpuBackend) -> None:
        self.backend = backend
        self.model = build_model(file)
        source = WeightSource(file)
        self.segments = backend.load(self.model.segments, source)

    def step(self, step: Step) -> NDArray[np.float32]:
        activations = {}
        for segment in self.segments:
            activations = self.backend.run(segment, step, self.state, activations)
        return np.array(activations["logits"])

    def fresh(self) -> None:
        self.state = self.backend.state_cache(self.model.state, [16])

    def last_logits(self, cuts: Sequence[int], count: int = len(TOKENS)) -> NDArray[np.float32]:
        """Logits of the last of ``count`` tokens, in steps that end at ``cuts`` and at the end."""
        self.fresh()
        past = 0
        for end in [*cuts, count]:
            positions = np.arange(past, end, dtype=np.int32)
            span = Span(0, end - past, past, (TABLE,))
            last = np.array([end - past - 1], np.int32)
            logits = self.step(Step(TOKENS[past:end], positions, (span,), last))
            past = end
        return logits


@pytest.fixture(scope="module")
def file(smollm2_path: Path) -> Iterator[ModelFile]:
    with open_model(smollm2_path) as opened:
        yield opened


@pytest.mark.parametrize(
    "isa", [ISAS[0], *(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[1:])]
)
def test_bits_depend_on_tokens_alone(file: ModelFile, isa: str) -> None:
    one = Runs(file, CpuBackend(threads=1, isa=isa))
    whole = one.last_logits([])
    assert one.last_logits([1, 2, 3, 70, 71]).tobytes() == whole.tobytes()
    for threads in (2, 3, 4):
        several = Runs(file, CpuBackend(threads=threads, isa=isa))
        cuts = sorted(set(np.random.default_rng(threads).integers(1, len(TOKENS), 5).tolist()))
        assert several.last_logits(cuts).tobytes() == whole.tobytes()
        assert several.last_logits([len(TOKENS) - 1]).tobytes() == whole.tobytes()


def test_more_threads_than_cores(file: ModelFile) -> None:
    """Few tokens, for runs in which every access is watched."""
    alone = Runs(file, CpuBackend(threads=1, isa=ISAS[0])).last_logits([], 12)
    crowd = Runs(file, CpuBackend(threads=5, isa=ISAS[0]))
    assert crowd.last_logits([9, 11], 12).tobytes() == alone.tobytes()


def test_bits_do_not_depend_on_company(file: ModelFile) -> None:
    runs = Runs(file, CpuBackend(threads=2, isa=ISAS[0]))
    alone = runs.last_logits([100])
    runs.fresh()
    # Sequence A advances from 100 to 150 beside B's first tokens and C's single one.
    first = np.arange(100, dtype=np.int32)
    runs.step(Step(TOKENS[:100], first, (Span(0, 100, 0, (TABLE,)),), np.array([99], np.int32)))
    b_table, c_table = np.array([9], np.int32), np.array([12], np.int32)
    tokens = np.concatenate([TOKENS[7:20], TOKENS[100:], TOKENS[3:4]])
    positions = np.concatenate([np.arange(13), np.arange(100, 150), [0]]).astype(np.int32)
    spans = (
        Span(0, 13, 0, (b_table,)),
        Span(13, 50, 100, (TABLE,)),
        Span(63, 1, 0, (c_table,)),
    )
    logits = runs.step(Step(tokens, positions, spans, np.array([12, 62, 63], np.int32)))
    assert logits[1].tobytes() == alone[0].tobytes()


def test_kv_block_is_the_native_one() -> None:
    from strata import _native

    assert _native.KV_BLOCK == KV_BLOCK


def test_bad_steps_are_refused(file: ModelFile) -> None:
    runs = Runs(file, CpuBackend(threads=1, isa=ISAS[0]))
    runs.fresh()
    one = np.array([0], np.int32)
    for token, position, span, row, message in [
        (49152, 0, Span(0, 1, 0, (TABLE,)), 0, "vocabulary"),
        (-1, 0, Span(0, 1, 0, (TABLE,)), 0, "negative token"),
        (5, 1, Span(0, 1, 0, (TABLE,)), 0, "positions must follow"),
        (5, 64, Span(0, 1, 64, (TABLE[:1],)), 0, "block table too short"),
        (5, 0, Span(0, 1, 0, (TABLE + 16,)), 0, "KV block out of range"),
        (5, 0, Span(0, 1, 0, (TABLE - 5,)), 0, "KV block out of range"),
        (5, 0, Span(0, 1, 0, ()), 0, "a table for each group"),
        (5, 0, Span(0, 2, 0, (TABLE,)), 0, "past the last row"),
        (5, 0, Span(0, 1, 0, (TABLE,), 0), 0, "before its parent"),
        (5, 0, Span(0, 1, 0, (TABLE,)), 1, "row of logits"),
    ]:
        step = Step(one + token, one + position, (span,), one + row)
        with pytest.raises(ValueError, match=message):
            runs.step(step)


def test_more_rows_of_logits_than_there_is_room_for_are_refused(file: ModelFile) -> None:
    settings = BackendSettings(max_tokens=4, max_logit_rows=2)
    runs = Runs(file, CpuBackend(threads=1, settings=settings))

    def logits(count: int) -> NDArray[np.float32]:
        runs.fresh()
        rows = np.arange(count, dtype=np.int32)
        return runs.step(Step(TOKENS[:count], rows, (Span(0, count, 0, (TABLE,)),), rows))

    assert len(logits(2)) == 2
    with pytest.raises(UsageError, match="3 rows of logits at once; this backend was made for 2"):
        logits(3)
    with pytest.raises(ValueError, match="more tokens than the arena was made for"):
        logits(5)
