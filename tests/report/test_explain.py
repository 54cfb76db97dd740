"""What is said of a run: the facts, the verdict, and how far a long sweep is."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import BackendStats, Span, Step
from strata.backends.cpu.host import available_isas
from strata.cli import explain_report
from strata.cli.sweep_line import SweepLine, line
from strata.decode import SamplingParams
from strata.engine import runtime as execution
from strata.engine.sweeps import SweepProgress, Sweeps
from strata.llm import LLM
from strata.machine.probe import load_machine

MACHINE = Path(__file__).resolve().parent.parent / "support" / "machines" / "server.json"


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is measured."""
    machine = replace(load_machine(MACHINE), isa=available_isas()[0], cores=2)
    monkeypatch.setattr(execution, "this_machine", lambda file: machine)


def explained(path: Path, megabytes: int | None) -> tuple[list[str], dict[str, object]]:
    memory = None if megabytes is None else megabytes * 10**6
    with LLM(path, memory=memory, threads=2, context=256, planned=memory is None) as llm:
        llm.generate(list(range(20, 60)), SamplingParams(max_tokens=5, ignore_eos=True))
        explanation = llm.explain()
    return list(explain_report.lines(explanation)), explain_report.as_json(explanation)


def tight() -> int:
    """A budget in which something has to be streamed, in a process as large as that of these
    tests."""
    return 75 + execution.base_memory(planned=True) // 10**6


def test_streaming(smollm2_path: Path) -> None:
    lines, values = explained(smollm2_path, tight())
    json.dumps(values, allow_nan=False)
    decode = values["decode"]
    assert isinstance(decode, dict)
    assert decode["sweeps"] == decode["tokens"] == 4
    assert decode["disk_bytes"] == 4 * values["sweep_bytes"]  # type: ignore[operator]
    assert 0 <= decode["waited_share"] <= 1
    assert 0 < decode["overlap"] <= 1
    assert decode["disk_share"] > 0
    assert any(text.startswith("memory: peak") and "budget" in text for text in lines)
    assert lines[-1] == values["verdict"]
    assert lines[-1].startswith(("disk-bound: ", "compute-bound: "))


def test_everything_resident(smollm2_path: Path) -> None:
    lines, values = explained(smollm2_path, None)
    assert values["sweep_bytes"] == 0
    assert values["host_bytes"] == values["load_bytes"] + 140_544  # type: ignore[operator]
    assert lines[-1].startswith("memory-bound: all weights are resident")


def step(tokens: int) -> Step:
    ids = np.arange(tokens, dtype=np.int32)
    return Step(ids, ids, (Span(0, tokens, 0, (np.zeros(1, np.int32),)),), ids[-1:])


def test_sweeps_add_up_by_kind_and_forget_what_failed() -> None:
    so_far = BackendStats()
    sweeps = Sweeps(3, lambda: so_far)
    for tokens, completed in ((8, True), (1, True), (1, False), (1, True)):
        sweeps.begin(step(tokens))
        so_far += BackendStats(used=10, waited_s=0.5)
        sweeps.end(completed=completed)
    assert (sweeps.prefill.sweeps, sweeps.prefill.tokens) == (1, 8)
    assert (sweeps.decode.sweeps, sweeps.decode.tokens) == (2, 2)
    assert sweeps.decode.streamed == BackendStats(used=20, waited_s=1.0)


def test_a_listener_hears_of_every_segment_and_of_the_end() -> None:
    sweeps = Sweeps(3, lambda: BackendStats(used=100))
    heard: list[SweepProgress | None] = []
    sweeps.listener = heard.append
    sweeps.begin(step(4))
    sweeps.done(1)
    sweeps.done(2)
    sweeps.end(completed=False)
    assert [p and (p.done, p.segments, p.tokens) for p in heard] == [(1, 3, 4), (2, 3, 4), None]


def test_the_line_is_drawn_for_long_sweeps_only_and_wiped() -> None:
    out = io.StringIO()
    draw = SweepLine(out)
    draw(SweepProgress(1, 10, 1, 0, 0.01, 0.09))
    draw(None)
    assert out.getvalue() == ""
    slow = SweepProgress(3, 34, 1, 1.93e9, 0.5, 5.2)
    draw(slow)
    draw(slow)
    shown = "[segment 3/34, 1.93 GB/s, next token in 5.2 s]"
    assert line(slow) == shown
    # Once for both, within a saved cursor and without wrapping.
    assert out.getvalue() == f"\x1b7\x1b[?7l {shown}\x1b[K\x1b[?7h\x1b8"
    draw(None)
    assert out.getvalue().endswith("\x1b[K")
