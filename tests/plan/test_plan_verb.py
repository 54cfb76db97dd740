"""``strata plan`` for files, shapes and machines of all sorts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.cli import main
from strata.plan import Plan, from_json
from support.described import MACHINES, machine

LAPTOP = ["--machine", str(MACHINES / "laptop.json")]


def test_a_shape_is_planned_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-70b:Q4_K_M", *LAPTOP, "--memory", "4GB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("llama-3.1-70b:Q4_K_M on 8 threads in 4.00 GB")
    for words in (
        "WHY",
        "margin",
        "together",
        "first token of a prompt of 512 after",
        "bound by disk",
        "BUDGET",
    ):
        assert words in out
    # The budget that was asked for stands among the others.
    assert out.partition("BUDGET")[2].count("4.00 GB") >= 1


def test_json_is_the_plan_itself(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--memory", "1GB", "--context", "2048", "--concurrency", "2", "--threads", "3"]
    assert main(["plan", "llama-3.1-8b", *LAPTOP, *arguments, "--kv-type", "q8_0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    plan = from_json(Plan, printed["plan"])
    assert (plan.context, plan.parallel, plan.threads, plan.kv_type) == (2048, 2, 3, "q8_0")
    assert plan.predicted.peak_bytes <= plan.budget == 10**9
    budgets = [row["budget"] for row in printed["budgets"]]
    assert budgets == sorted(budgets)
    assert 10**9 in budgets


def test_windows_have_their_line_and_their_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "gemma-3-4b:Q4_K_M", *LAPTOP, "--memory", "4GB", "--context", "32768"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("context"))
    assert "32768 positions for 1, " in line
    assert line.endswith("as given; windows save 3.69 GB")
    assert main([*arguments, "--json"]) == 0
    plan = from_json(Plan, json.loads(capsys.readouterr().out)["plan"])
    full, windowed = plan.kv_blocks
    assert full == 512 > 16 * windowed
    assert plan.predicted.memory.kv < 1e9


def test_a_file_on_this_machine(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def probe(path: Path, **_: object) -> object:
        asked.append(path)
        return machine("laptop"), True

    monkeypatch.setattr("strata.machine.probe.probe", probe)
    assert main(["plan", str(smollm2_path), "-q"]) == 0
    assert asked == [smollm2_path]
    assert "everything fits the budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["llama-3.1-8b", *LAPTOP, "--memory", "100MB"], 2, "needs"),
        (["llama-3.1-8b", "--machine", "nowhere.json"], 2, "there is no file nowhere.json"),
        (["llama-3.1-8b:Q9_X", *LAPTOP], 2, "no quantisation 'Q9_X'"),
        (["llama-3.1-9b", *LAPTOP], 1, "no model 'llama-3.1-9b'"),
        (["llama-3.1-8b", *LAPTOP, "--context", "1000000"], 2, "allows 2 to 131072"),
        (
            ["llama-3.1-8b", *LAPTOP, "--context", "64", "--prompt-tokens", "64"],
            2,
            "leaves no room",
        ),
        (["llama-3.1-8b", *LAPTOP, "--memory", "much"], 2, "is not a size"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    assert main(["plan", *arguments]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_small_context_is_planned_for_prompts_that_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "llama-3.1-8b", *LAPTOP, "--context", "64"]) == 0
    assert "first token of a prompt of 32 after" in capsys.readouterr().out
