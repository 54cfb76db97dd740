"""What happens beside what else while a model is loaded, and what comes of it when that fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strata import LLM, SamplingParams
from strata.backends.base import LoadedSegment
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.weights import WeightSource
from strata.engine import runner, runtime
from strata.formats import FormatError
from strata.machine.probe import load_machine
from strata.program import Segment
from strata.text import Tokenizer
from support.weighing import settled_bytes

MACHINE = Path(__file__).resolve().parents[1] / "support" / "machines" / "server.json"


@pytest.fixture
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is measured."""
    machine = replace(load_machine(MACHINE), isa=available_isas()[0], cores=2)
    monkeypatch.setattr(runtime, "this_machine", lambda file: machine)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many Segments each call loaded."""
    seen: list[int] = []
    load = CpuBackend.load

    def counted(
        self: CpuBackend, segments: Sequence[Segment], weights: WeightSource, **options: Any
    ) -> list[LoadedSegment]:
        seen.append(len(segments))
        return load(self, segments, weights, **options)

    monkeypatch.setattr(CpuBackend, "load", counted)
    return seen


def _tokens(path: Path) -> Sequence[int]:
    with LLM(path, context=64) as llm:
        return llm.generate([[1, 2, 3]], SamplingParams(max_tokens=4))[0].token_ids


def test_small_segments_are_loaded_in_one_call(
    smollm2_path: Path, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = _tokens(smollm2_path)
    count = sum(loads)
    assert len(loads) == 2
    loads.clear()
    monkeypatch.setattr(runner, "_TOGETHER", 1)
    assert _tokens(smollm2_path) == together
    assert loads == [1] * count


def test_a_tokenizer_is_built_beside_the_weights(
    smollm2_path: Path, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, here = Tokenizer.encode, threading.current_thread()

    def late(self: Tokenizer, *args: Any, **options: Any) -> list[int]:
        if threading.current_thread() is not here:
            # Whoever waits for it before there are weights waits as long.
            for _ in range(6000):
                if not loads:
                    threading.Event().wait(0.01)
            assert loads
        return encode(self, *args, **options)

    monkeypatch.setattr(Tokenizer, "encode", late)
    assert _tokens(smollm2_path)


@pytest.mark.usefixtures("_known_machine")
def test_in_a_budget_it_is_built_before_them_in_the_same_thread(
    smollm2_path: Path, loads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another thread's allocator does not use again what reading the vocabulary has left here.
    encode, first = Tokenizer.encode, list[tuple[threading.Thread, int]]()

    def watched(self: Tokenizer, *args: Any, **options: Any) -> list[int]:
        first.append((threading.current_thread(), len(loads)))
        return encode(self, *args, **options)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    with LLM(smollm2_path, context=64, memory=settled_bytes() + 350 * 10**6):
        assert first[0] == (threading.current_thread(), 0)


def test_one_that_cannot_be_built_is_an_error(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Tokenizer, *args: Any, **options: Any) -> list[int]:
        raise FormatError("no such merge")

    monkeypatch.setattr(Tokenizer, "encode", failing)
    with pytest.raises(FormatError, match="no such merge"):
        LLM(smollm2_path, context=64)
