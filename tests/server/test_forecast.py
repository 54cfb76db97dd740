"""What is predicted beside the actual speed."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.llm import LLM
from strata.machine.probe import load_machine
from strata.program import StepSize
from strata.server.telemetry import forecast as module
from strata.server.telemetry.forecast import Forecast, forecast

MACHINE = Path(__file__).parents[1] / "support" / "machines"


@pytest.fixture
def expected(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    machine = load_machine(sorted(MACHINE.glob("*.json"))[0])
    monkeypatch.setattr(module, "known_machine", lambda _: machine)
    found = forecast(llm)
    assert found is not None
    return found


def speed(expected: Forecast, tokens: int, context: int) -> float:
    found = expected.output_tok_s(StepSize(tokens, tokens, context))
    assert found is not None
    return found


def test_deeper_is_slower_and_together_is_faster(expected: Forecast) -> None:
    assert speed(expected, 1, 1) > speed(expected, 1, 4000)
    assert speed(expected, 1, 100) < speed(expected, 8, 100) < 8 * speed(expected, 1, 100)


def test_one_answer_alone_is_as_fast_as_its_first_sweep(expected: Forecast) -> None:
    assert expected.alone_tok_s() == pytest.approx(speed(expected, 1, 1), rel=1e-3)


def test_no_speed_exceeds_the_memory(expected: Forecast, llm: LLM) -> None:
    # Every weight is read for each token; the embedding table is the head's as well.
    weights = dict(llm.engine.runner.sizes)
    read = sum(weights.values()) - weights["embed"]
    assert speed(expected, 1, 1) * read < expected.ceilings.memory_bytes_per_s


def test_a_sweep_that_reads_a_prompt_has_none(expected: Forecast) -> None:
    assert expected.output_tok_s(StepSize(40, 1, 20)) is None


def test_an_unknown_machine_has_none(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "known_machine", lambda _: None)
    assert forecast(llm) is None
