"""`strata quantize --fit`: the largest mix of which nothing streams, by the Plan."""

from __future__ import annotations

from pathlib import Path

import pytest

import make_tiny_models
from strata.backends.registry import DEFAULT, backend_class
from strata.backends.weights import WeightSource
from strata.cli import main
from strata.errors import UsageError
from strata.formats.header_only import with_types
from strata.machine.probe import load_machine
from strata.models import build_model
from strata.plan import BudgetTooSmall, Limits, Workload
from strata.plan.outline import outline
from strata.plan.planner import plan
from strata.quant import by_name
from strata.quantizer.allocate import Choice, NoRoom
from strata.quantizer.fitting import mix_that_fits, types_of
from strata.quantizer.mixes import is_quantised
from strata.synth import SHAPES, describe

LAPTOP = Path(__file__).parent.parent / "support" / "machines" / "laptop.json"
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
MODEL = describe(SHAPES["llama-3.2-1b"], "F16")


def alike(nbytes: int) -> dict[str, Choice]:
    """All matrices in the largest type with which they take so many bytes at most."""
    names = [n for n, i in MODEL.tensors.items() if is_quantised(n, i.shape)]
    for label in reversed(TYPES):
        made = {
            n: Choice(label, by_name(label).tensor_nbytes(MODEL.tensors[n].shape), 0.0)
            for n in names
        }
        if sum(c.nbytes for c in made.values()) <= nbytes:
            return made
    raise NoRoom("nothing is so small")


def streams(label: str, budget: int) -> bool:
    types = {n: by_name(label) for n, i in MODEL.tensors.items() if is_quantised(n, i.shape)}
    header = with_types(MODEL, types)
    model = build_model(header)
    profile = backend_class(DEFAULT).profile(model, WeightSource(header))
    sizes = outline("m", model, header, profile)
    try:
        made = plan(sizes, load_machine(LAPTOP), Limits(budget), Workload())
    except BudgetTooSmall:
        return True
    return made.predicted.sweep_bytes > 0


@pytest.mark.parametrize("budget", [800_000_000, 1_000_000_000, 1_300_000_000])
def test_nothing_streams_and_the_next_larger_would(budget: int) -> None:
    mix = mix_that_fits(MODEL, alike, load_machine(LAPTOP), budget)
    label = next(iter(types_of(mix, MODEL).values())).name
    assert not streams(label, budget)
    assert label == TYPES[-1] or streams(TYPES[TYPES.index(label) + 1], budget)


def test_a_budget_in_which_all_would_stream_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no mix of .* stays in"):
        mix_that_fits(MODEL, alike, load_machine(LAPTOP), 300_000_000)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = make_tiny_models.golden("llama")
    model = make_tiny_models.write_directory(tmp_path / "m", golden)
    out = tmp_path / "o.gguf"
    args = ["quantize", str(model), str(out), "--machine", str(LAPTOP), "--fit"]
    assert main([*args, "1MB", "-q"]) == 2
    said = capsys.readouterr().err
    assert "stays in 1.00 MB" in said
    assert said.count("\n") == 1
    assert not out.exists()
    assert main([*args, "1GB", "--write-recipe", str(tmp_path / "r"), "-q"]) == 0
    assert "Q8_0" in (tmp_path / "r").read_text()
    assert main([*args, "1GB", "--size", "1GB", "--force"]) == 2


def test_what_is_wrong_with_the_machine_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("strata.quantizer.lab.measured_mix", lambda *_, **__: pytest.fail("late"))
    wrong = tmp_path / "machine.json"
    wrong.write_text("{}")
    args = ["quantize", "smollm2", str(tmp_path / "m.gguf"), "--machine", str(wrong)]
    assert main([*args, "--fit", "200MB"]) in (1, 2)
    assert str(wrong) in capsys.readouterr().err
    assert main([*args, "--type", "Q4_0"]) == 2
    assert "--fit" in capsys.readouterr().err
