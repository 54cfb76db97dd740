"""``strata plan --fit`` and what is known of quality: sizes as of real files, and honesty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strata.cli import main
from strata.cli.plan_fit import Fit, best
from strata.formats import open_model
from strata.report.quality.known import KnownCost, known_quality, kv_cost_line
from strata.synth import SHAPES, describe
from strata.synth.retyped import retyped
from support.described import MACHINES

LAPTOP = ["--machine", str(MACHINES / "laptop.json")]


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "mixtral-8x7b", "smollm2-135m"])
@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"])
def test_a_header_in_another_quantisation_is_that_of_its_file(shape: str, recipe: str) -> None:
    there, wanted = (describe(SHAPES[shape], r) for r in ("F16", recipe))
    made = retyped(there, "llama", recipe)
    assert {n: i.type.name for n, i in made.tensors.items()} == {
        n: i.type.name for n, i in wanted.tensors.items()
    }
    assert made.nbytes == wanted.nbytes


def test_the_largest_of_which_nothing_streams_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "smollm2-135m", *LAPTOP, "--memory", "2GB", "--fit"]) == 0
    out = capsys.readouterr().out
    assert "best of those that stay in memory: F16" in out
    assert "not of this model" in out
    assert "BF16" in out


@pytest.mark.slow
def test_what_is_best_for_a_budget_stays_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smollm2-135m", *LAPTOP, "--memory", "280MB", "--fit", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in said["quantisations"]}
    assert rows[said["best"]]["streams"] == 0
    assert rows["F16"]["streams"] > 0
    sizes = [row["bytes"] for row in said["quantisations"]]
    assert sizes == sorted(sizes, reverse=True)
    assert said["quality_of"] == known_quality().model


@pytest.mark.slow
def test_where_all_stream_the_fastest_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-70b", *LAPTOP, "--memory", "4GB", "--fit"]) == 0
    assert "none stays in memory" in capsys.readouterr().out


@pytest.mark.slow
def test_where_nothing_runs_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-70b", *LAPTOP, "--memory", "60MB", "--fit"]) == 0
    assert "no quantisation runs in this budget" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_has_its_other_quantisations(
    smollm2_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(smollm2_path), *LAPTOP, "--memory", "1GB", "--fit", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["quantisations"]}
    with open_model(smollm2_path) as file:
        # It is one of Q4_1, and its embedding the head, in Q8_0.
        assert rows["Q4_1"]["bytes"] == file.nbytes


def test_a_directory_is_planned_as_the_files_that_are_made_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import make_tiny_models

    fit = (*LAPTOP, "--prompt-tokens", "64", "--fit", "--json")
    golden = make_tiny_models.golden("llama")
    found = []
    for path in (
        make_tiny_models.write_directory(tmp_path / "m", golden),
        make_tiny_models.write_gguf(tmp_path / "m.gguf", golden),
    ):
        assert main(["plan", str(path), *fit]) == 0
        rows = json.loads(capsys.readouterr().out)["quantisations"]
        found.append([(r["name"], r["bytes"]) for r in rows])
    assert found[0] == found[1]
    other = make_tiny_models.write_directory(tmp_path / "o", make_tiny_models.golden("opt"))
    assert main(["plan", str(other), *fit]) == 2
    said = capsys.readouterr().err
    assert "no GGUF file" in said
    assert said.count("\n") == 1


def test_more_bits_are_better_unless_both_were_measured() -> None:
    class Whole(Fit):
        @property
        def whole(self) -> bool:
            return True

    def one(name: str, size: int, kl: float | None) -> Fit:
        return Whole(name, size, size, None, None if kl is None else KnownCost(kl, 1.0))

    small, middle, large = one("small", 5, 0.01), one("middle", 6, None), one("large", 7, 0.02)
    assert best([middle, small]) is middle
    assert best([large, middle, small]) is small
    assert best([one("largest", 9, 0.001), large, middle, small]).name == "largest"  # type: ignore[union-attr]
    assert best([]) is None


def test_what_a_kv_type_costs_is_said_or_that_it_is_not_known() -> None:
    known = known_quality()
    for name, cost in known.kv.items():
        line = kv_cost_line(name)
        assert f"{cost.kl:.2g} " in line
        assert known.model in line
    assert "was not measured" in kv_cost_line("q1_9")
