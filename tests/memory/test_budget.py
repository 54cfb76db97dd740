"""A budget is obeyed, the books agree with the system, and the answer is the one without it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strata.backends.cpu.host import available_isas
from strata.decode import SamplingParams
from strata.engine import runtime
from strata.errors import UsageError
from strata.llm import LLM
from strata.machine.probe import load_machine
from strata.memory import LedgerError, process_memory
from strata.plan import Plan, from_json, to_json
from support.weighing import settled_bytes

SUPPORT = Path(__file__).resolve().parents[1] / "support"
MACHINE = SUPPORT / "machines" / "server.json"
CONTEXT, PROMPT, ANSWER = 256, 200, 40


def run(model: Path, memory: int, *, wrapper: tuple[str, ...] = ()) -> Any:
    numbers = map(str, (memory, CONTEXT, PROMPT, ANSWER))
    script = [sys.executable, str(SUPPORT / "run_in_budget.py"), str(model), str(MACHINE), *numbers]
    done = subprocess.run([*wrapper, *script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def unlimited(smollm2_path: Path) -> Any:
    return run(smollm2_path, 0)


# From what Python, numpy and a tokenizer take and little more to room for everything.
@pytest.mark.parametrize(
    "megabytes", [150, *(pytest.param(mb, marks=pytest.mark.slow) for mb in (None, 180, 260))]
)
def test_peak_and_answer(smollm2_path: Path, unlimited: Any, megabytes: int | None) -> None:
    got = run(smollm2_path, -1 if megabytes is None else megabytes * 10**6)
    assert got["tokens"] == unlimited["tokens"]
    assert got["logprobs"] == unlimited["logprobs"]
    assert got["peak"] <= got["predicted"] <= got["budget"]
    assert sum(got["owned"].values()) <= got["budget"]
    assert got["used_bytes"] == got["sweeps"] * got["sweep_bytes"]
    if megabytes is None:
        # Attention and feed-forward of 30 layers, the table and the head; of the whole megabytes
        # there may be left enough for one attention.
        assert got["streamed"] in (61, 62)
    elif megabytes == 260:
        assert got["streamed"] == 0
    else:
        assert 0 < got["streamed"] < 62


@pytest.fixture
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is measured."""
    machine = replace(load_machine(MACHINE), isa=available_isas()[0], cores=2)
    monkeypatch.setattr(runtime, "this_machine", lambda file: machine)


@pytest.mark.usefixtures("_known_machine")
def test_too_small_a_budget_is_refused_before_loading(smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match=r"50\.0 MB .*is too little for .* needs \d+MB"):
        LLM(smollm2_path, memory="50MB", context=256)


@pytest.mark.usefixtures("_known_machine")
def test_a_plan_of_another_model_is_refused(smollm2_path: Path) -> None:
    memory = settled_bytes() + 350 * 10**6
    with LLM(smollm2_path, memory=memory, context=256, threads=1) as llm:
        plan = llm.plan
    assert plan is not None
    data = to_json(plan)
    data["resident"] = data["resident"][1:]
    with pytest.raises(UsageError, match="another model"):
        LLM(smollm2_path, plan=from_json(Plan, data))
    with pytest.raises(UsageError, match="cpu backend"):
        LLM(smollm2_path, memory="1GB", backend="reference")


@pytest.mark.usefixtures("_known_machine")
def test_what_the_plan_forgot_is_refused_before_it_is_allocated(smollm2_path: Path) -> None:
    memory = settled_bytes() + 350 * 10**6
    with LLM(smollm2_path, memory=memory, context=256, threads=1) as llm:
        plan = llm.plan
    assert plan is not None
    data = to_json(plan)
    # As if KV were free: there is no room for so much of it.
    budget = settled_bytes() + 250 * 10**6
    data |= {"context": 8192, "budget": budget, "kv_blocks": [128]}
    with pytest.raises(LedgerError, match=r"kv would take 189 MB"):
        LLM(smollm2_path, plan=from_json(Plan, data), memory=budget, context=8192)


def test_books_without_a_budget(smollm2_path: Path) -> None:
    with LLM(smollm2_path, threads=1, context=256) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=4))
        llm.runtime.check_integrity()
        owned = llm.ledger.owned
    assert owned["weights"] > 90 * 10**6
    assert {"interpreter", "tokenizer", "kv", "activations", "logits"} <= set(owned)


def test_memory_comes_back(smollm2_path: Path) -> None:
    def once() -> None:
        with LLM(smollm2_path, threads=1, context=256) as llm:
            llm.generate([1, 2, 3], SamplingParams(max_tokens=4))

    once()
    gc.collect()
    before = process_memory().anonymous
    for _ in range(3):
        once()
    gc.collect()
    assert process_memory().anonymous - before < 16 << 20
