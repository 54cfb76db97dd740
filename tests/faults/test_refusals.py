"""The n-th piece of memory and the n-th thread that native code asks for are refused, for every n
until there is no n-th: each time a named error, nothing lost, and the next attempt has the bits."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
import strata._native as _native
from strata import LLM, SamplingParams
from strata.backends.cpu.backend import CpuBackend
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.engine import Engine, Runner
from strata.errors import OutOfMemoryError, StrataError, ThreadStartError
from strata.formats import ModelFile, open_model
from strata.memory import Ledger
from strata.models import build_model
from support.streaming import settings, units

CONTEXT = 192
PROMPT = [int(t) for t in np.random.default_rng(9).integers(0, 200, 66)]
PARAMS = SamplingParams(max_tokens=2, logprobs=2, ignore_eos=True)
ERRORS = {"allocation": OutOfMemoryError, "thread": ThreadStartError}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    golden = make_tiny_models.golden("llama")
    path = tmp_path_factory.mktemp("tiny") / "model.gguf"
    make_tiny_models.write_gguf(path, golden)
    return path


@pytest.fixture
def model(path: Path) -> Iterator[ModelFile]:
    with open_model(path) as file:
        yield file


@pytest.fixture(autouse=True)
def _nothing_fails_afterwards() -> Iterator[None]:
    yield
    for kind in ERRORS:
        _native.fail_after(kind, 0)


def held() -> tuple[int, int]:
    """Threads and open files of this process; threads that end take a moment to be gone."""
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(100):
        time.sleep(0.001)
        now = len(os.listdir("/proc/self/task"))
        if now >= threads:
            break
        threads = now
    return threads, files


def how(model: ModelFile, streamed: bool) -> BackendSettings:
    return settings(units(model) if streamed else [], ring=1 << 17, tile=1 << 14)


class Attempt:
    """One load of the model, and an answer by it."""

    def __init__(self, model: ModelFile, streamed: bool) -> None:
        self.ledger = Ledger()
        backend = CpuBackend(threads=3, settings=how(model, streamed), books=self.ledger)
        self.runner = Runner(backend, build_model(model, CONTEXT), WeightSource(model))
        self.engine = Engine(self.runner, context=CONTEXT, parallel=2)

    def begin(self) -> None:
        self.request = self.engine.submit(PROMPT, PARAMS)

    def finish(self) -> list[object]:
        while self.engine.busy:
            self.engine.step()
            self.engine.check_integrity()
        return list(self.request.output)

    def answer(self) -> list[object]:
        self.begin()
        return self.finish()


def refused(kind: str, error: StrataError) -> None:
    # What a reader of weights was refused comes as the error of the reading that failed.
    assert isinstance(error, ERRORS[kind]) or "no memory for" in str(error)
    assert "\n" not in str(error)
    assert "(" in str(error), "it says what to do"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads by Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "streamed", "always"),
    [
        pytest.param(*case, marks=() if case[1:] == (True, True) else pytest.mark.slow)
        for case in product(ERRORS, (False, True), (False, True))
    ],
)
def test_nothing_is_lost(model: ModelFile, kind: str, streamed: bool, always: bool) -> None:
    want = Attempt(model, streamed).answer()
    before = held()
    # Loading under refusals: it fails by name and leaves nothing, or succeeds.
    for n in count(1):
        attempt = None
        _native.fail_after(kind, n, always)
        try:
            attempt = Attempt(model, streamed)
        except StrataError as error:
            refused(kind, error)
        failed = _native.has_failed(kind)
        _native.fail_after(kind, 0)
        assert failed or attempt is not None
        if attempt is not None:
            assert attempt.answer() == want
        del attempt
        assert held() == before
        if not failed:
            break
    assert n > 1


@pytest.mark.parametrize(
    ("kind", "streamed", "always"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[:2] == ("allocation", True) else ())
        for case in product(ERRORS, (False, True), (False, True))
    ],
)
def test_a_step_that_is_refused_is_taken_again(
    model: ModelFile, kind: str, streamed: bool, always: bool
) -> None:
    """Whatever fails on the way to an answer, the same request goes on to the same bits."""
    attempt = Attempt(model, streamed)
    want = attempt.answer()
    books = dict(attempt.ledger.owned)
    refusals = 0
    for n in count(1):
        # A new object, so that what grows by use has to grow again.
        attempt = Attempt(model, streamed)
        attempt.begin()
        _native.fail_after(kind, n, always)
        try:
            got = attempt.finish()
        except StrataError as error:
            refused(kind, error)
            refusals += 1
        failed = _native.has_failed(kind)
        _native.fail_after(kind, 0)
        got = attempt.finish()
        assert got == want
        assert dict(attempt.ledger.owned) == books
        if not failed:
            break
    # A ring that is refused a thread makes do with those it has.
    assert refusals > 0 or (kind == "thread" and not (streamed and always))


def test_an_llm_that_could_not_be_loaded_can_be_loaded(path: Path) -> None:
    with LLM(path, threads=2, context=CONTEXT) as llm:
        want = llm.generate(PROMPT, PARAMS)
    for kind, n in (("allocation", 1), ("allocation", 9), ("thread", 1)):
        _native.fail_after(kind, n)
        with pytest.raises(ERRORS[kind]):
            LLM(path, threads=2, context=CONTEXT)
        with LLM(path, threads=2, context=CONTEXT) as llm:
            # And one whose first step is refused answers when it is asked again.
            _native.fail_after("allocation", 1)
            with pytest.raises(OutOfMemoryError):
                llm.generate(PROMPT, PARAMS)
            got = llm.generate(PROMPT, PARAMS)
            assert (got.token_ids, got.logprobs) == (want.token_ids, want.logprobs)
