"""The KV type that is chosen where answers may lose a little."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from strata import LLM, UsageError
from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightSource
from strata.cli import main
from strata.engine.kv_quality import CHOICE, KVChoice, quickest
from strata.models import build_model
from strata.plan import BudgetTooSmall, Limits, Outline, Plan, Workload
from strata.plan.outline import outline
from strata.plan.planner import plan
from strata.report.quality.known import known_quality, kv_choices
from strata.synth import SHAPES, describe
from support.described import machine

CHOICES = (KVChoice("f16", "exact"), KVChoice("q8_0", "little"), KVChoice("int4", "more"))


@pytest.fixture(scope="module")
def sizes() -> Outline:
    file = describe(SHAPES["llama-3.1-8b"], "Q4_K_M")
    model = build_model(file, 131072)
    return outline("m", model, file, CpuBackend.profile(model, WeightSource(file)))


def chosen(sizes: Outline, memory: int, context: int, disk: bool = True) -> Plan:
    def make(kv_type: str) -> Plan:
        limits = Limits(memory, 2, kv_type, kv_disk=disk)
        return plan(sizes, machine("laptop"), limits, Workload(context - 100, 1, context, 90))

    return quickest(make, CHOICES, "1%")


def said(made: Plan) -> str:
    (choice,) = (c for c in made.choices if c.name == CHOICE)
    return f"{choice.value}: {choice.reason}"


def test_where_nothing_is_gained_nothing_is_lost(sizes: Outline) -> None:
    made = chosen(sizes, 16 * 10**9, 512)
    assert made.kv_type == "f16"
    assert said(made).startswith("KV as f16 for 1%: exact; expected: f16 ")


def test_where_kv_is_what_moves_it_is_made_smaller(sizes: Outline) -> None:
    """At 131,072 positions f16 is read from the disk in every step."""
    made = chosen(sizes, 7 * 10**9, 131072)
    assert made.kv_type == "int4"
    assert "KV as int4 for 1%: more; expected: f16 " in said(made)
    assert ", q8_0 " in said(made)


def test_what_has_no_room_is_passed_over(sizes: Outline) -> None:
    made = chosen(sizes, 7 * 10**9, 65536, disk=False)
    assert made.kv_type != "f16"
    assert "f16 has no room" in said(made)
    with pytest.raises(BudgetTooSmall):
        chosen(sizes, 10**9, 131072, disk=False)


def test_choices_are_those_known_to_lose_no_more() -> None:
    assert [c.kv_type for c in kv_choices("exact")] == ["f16"]
    known = known_quality().kv
    for said, bound in (("0.01%", 1e-4), ("0.1%", 1e-3), ("1%", 1e-2), ("100%", 1.0)):
        names = [c.kv_type for c in kv_choices(said)][1:]
        assert sorted(names) == sorted(n for n, c in known.items() if math.expm1(c.kl) <= bound)
        costs = [known[n].kl for n in names]
        assert costs == sorted(costs)
    assert all("was not measured" in c.cost for c in kv_choices("1%")[1:])


@pytest.mark.parametrize("wanted", ["", "1", "%", "-1%", "0%", "nan%", "101%", "best", "x" * 999])
def test_what_is_no_quality_is_one_line(wanted: str) -> None:
    with pytest.raises(UsageError, match="quality is exact, or a loss such as") as caught:
        kv_choices(wanted)
    assert len(str(caught.value)) < 250


def test_it_goes_with_neither_a_type_nor_a_plan(smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        LLM(smollm2_path, context=64, quality="1%", kv_type="f16")
    with pytest.raises(UsageError, match="which the cpu backend makes"):
        LLM(smollm2_path, context=64, quality="1%", backend="reference")


@pytest.mark.slow
def test_answers_are_those_of_the_type_it_chose(smollm2_path: Path) -> None:
    with LLM(smollm2_path, threads=2, context=128, quality="0.1%") as llm:
        kv_type = llm.runtime.kv_type.name
        assert any(c.name == CHOICE and kv_type in c.value for c in llm.plan.choices)  # type: ignore[union-attr]
        assert (llm.runtime.kv_choice or "").startswith(f"KV as {kv_type} for 0.1%: ")
        answer = llm.generate([5, 6, 7], {"max_tokens": 5, "logprobs": 1})
    with LLM(smollm2_path, threads=2, context=128, kv_type=kv_type) as llm:
        assert llm.generate([5, 6, 7], {"max_tokens": 5, "logprobs": 1}).logprobs == answer.logprobs


@pytest.mark.slow
def test_it_is_told_with_the_answer(
    smollm2_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after another budget, which leaves it as it was."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    asked = ["run", str(smollm2_path), "Hello", "--max-tokens", "2", "-c", "128", "--quality", "1%"]
    assert main([*asked, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["kv_choice"].startswith(f"KV as {found['kv_type']} for 1%: ")
    assert found["kv_choice"] in said.err
    assert main([*asked[:-2], "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_choice"] is None
    with LLM(smollm2_path, threads=2, context=128, quality="1%") as llm:
        before, why = llm.runtime.kv_type, llm.runtime.kv_choice
        plan = llm.set_budget("1.5GB")
        assert llm.runtime.kv_type == before
        assert plan.kv_type == before.name
        assert llm.runtime.kv_choice == why
