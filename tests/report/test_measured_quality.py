"""What `strata quality` measured of a model is found again for its plans, and for no other's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import make_tiny_models
from strata.cli import main
from strata.cli.plan_fit import Fit, best
from strata.formats import open_model
from strata.report.quality.known import KnownCost
from strata.report.quality.measured import (
    MeasuredFile,
    MeasuredQuality,
    lineage,
    recall,
    remember,
)
from strata.synth import SHAPES, describe
from support.described import MACHINES


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "F32.gguf"
    make_tiny_models.write_gguf(path, make_tiny_models.golden("llama"))
    return path


def name_of(path: Path) -> str:
    with open_model(path) as file:
        found = lineage(file)
    assert found is not None
    return found


def test_a_model_is_told_by_what_its_quantisations_keep(floats: Path, tmp_path: Path) -> None:
    small = tmp_path / "q4.gguf"
    assert main(["quantize", str(floats), str(small), "--type", "Q4_0", "-q"]) == 0
    assert name_of(small) == name_of(floats)
    other = tmp_path / "other.gguf"
    make_tiny_models.write_gguf(other, make_tiny_models.golden("qwen2"))
    assert name_of(other) != name_of(floats)
    assert lineage(describe(SHAPES["llama-3.2-1b"], "F16")) is None


def test_plans_say_what_was_measured_of_the_model(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, text = tmp_path / "q4.gguf", tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and others do so too. " * 30)
    assert main(["quantize", str(floats), str(small), "--type", "Q4_0", "-q"]) == 0
    fit = ["--machine", str(MACHINES / "laptop.json"), "--prompt-tokens", "64", "--fit"]
    plan = ["plan", str(floats), *fit]
    assert main([*plan, "--json"]) == 0
    capsys.readouterr()
    given = ["--base", str(floats), "--text", str(text), "-c", "32", "--chunks", "2", "-q"]
    assert main(["quality", str(small), *given, "--json"]) == 0
    kl = json.loads(capsys.readouterr().out)["models"][0]["kl"]["value"]
    # From the floats and from what was made of them alike.
    for model in (floats, small):
        assert main(["plan", str(model), *fit, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        rows = {row["name"]: row["quality"] for row in said["quantisations"]}
        assert rows["Q4_0"]["kl"] == kl
        assert rows["Q4_0"]["of_this_model"]
        assert not any(r and r["of_this_model"] for n, r in rows.items() if n.startswith("Q8"))
        assert said["measured"] == {"text": "text.txt", "windows": 2, "context": 32}
    assert main(plan) == 0
    assert "quality of this model: by `strata quality` on 2 windows" in capsys.readouterr().out


def test_losses_on_other_windows_are_not_mixed() -> None:
    a, b = MeasuredFile("a", 100, "Q4_0", 0.5, 0.9), MeasuredFile("b", 200, "Q8_0", 0.1, 0.99)
    remember("m", MeasuredQuality("t", "1", 2, 32, (a,)))
    remember("m", MeasuredQuality("t", "1", 2, 32, (b,)))
    found = recall("m")
    assert found is not None
    assert found.files == (a, b)
    assert found.cost(100, "Q4_0") == KnownCost(0.5, 0.9, "Q4_0")
    assert found.cost(102, "Q4_0") is None
    assert found.cost(100, "Q4_1") is None
    remember("m", MeasuredQuality("t", "2", 2, 32, (b,)))
    found = recall("m")
    assert found is not None
    assert found.files == (b,)


@pytest.mark.parametrize("said", ["", "[]", "[" * 9999, '{"files": [{"kl": NaN}]}', "é"])
def test_what_is_not_as_it_was_written_is_not_used(home: Path, said: str) -> None:
    remember("m", MeasuredQuality("t", "1", 2, 32, (MeasuredFile("a", 1, "F16", 0, 1),)))
    (path,) = home.glob("quality/*")
    assert recall("m") is not None
    path.chmod(0o666)
    assert recall("m") is None
    path.chmod(0o600)
    path.write_text(said, encoding="latin-1")
    assert recall("m") is None
    path.unlink()
    os.mkfifo(path)
    assert recall("m") is None


def test_a_smaller_one_is_better_only_where_both_were_measured_of_one_model() -> None:
    class Whole(Fit):
        @property
        def whole(self) -> bool:
            return True

    def one(size: int, kl: float, own: bool) -> Fit:
        return Whole(str(size), size, size, None, KnownCost(kl, 1.0), own)

    assert best([one(9, 0.2, False), one(5, 0.1, True)]).name == "9"  # type: ignore[union-attr]
    assert best([one(9, 0.2, True), one(5, 0.1, True)]).name == "5"  # type: ignore[union-attr]
