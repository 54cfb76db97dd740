"""``strata routes`` as a user meets it, and the Plan that goes by what it kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from strata.cli import main
from strata.engine.routes import known_hits
from strata.formats import open_model
from strata.synth import SHAPES, write_model

TEXT = "The river ran past the mill, and the miller slept. " * 12


@pytest.fixture
def mixture(smollm2_path: Path, tmp_path: Path) -> Path:
    shape = replace(SHAPES["tiny-qwen3moe"], layers=3)
    with open_model(smollm2_path) as source:
        write_model(
            shape,
            tmp_path / "m.gguf",
            recipe="Q8_0",
            tokenizer=dict(source.metadata),
            routing="skewed",
        )
    return tmp_path / "m.gguf"


def test_routes(
    mixture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path / "home"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    command = ["routes", str(mixture), "--text", str(text), "--quiet", "--threads", "2"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["experts"], found["top_k"]) == (3, 48, 4)
    assert 0.25 < found["skew"]["0.25"] < 1
    assert found["slot_bytes"] > 0
    assert Path(found["kept"]).is_file()
    for row in found["hit_rates"]:
        assert row["belady"] >= row["frequency"] >= 0
    assert main(command) == 0
    assert "BELADY" in capsys.readouterr().out
    # Of one sequence, and of sixteen, each with a part of the text.
    assert {(c.rows, c.tokens) for c in known_hits([mixture])} == {(1, 252), (16, 224)}
    # Those of other numbers of sequences stay.
    assert main([*command, "--parallel", "4"]) == 0
    assert {(c.rows, c.tokens) for c in known_hits([mixture])} == {(1, 252), (4, 248), (16, 224)}
    kept = Path(found["kept"])
    written = json.loads(kept.read_text())
    kept.write_text(json.dumps(written | {"policy": written["policy"] - 1}))
    assert known_hits([mixture]) == ()  # what another policy would find says nothing
    kept.write_text(json.dumps(written))
    # Another file is not known by this one's routes.
    mixture.write_bytes(mixture.read_bytes())
    assert known_hits([mixture]) == ()


def test_a_context_too_short_for_sequences_beside_each_other(
    mixture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    monkeypatch.setattr("strata.cli.routes._WINDOW", 6)
    assert main(["routes", str(mixture), "--text", str(text), "-q", "--parallel", "4"]) == 2
    said = capsys.readouterr().err
    assert "6 tokens for each of 4 sequences are too few" in said
    assert said.count("\n") == 1


def test_what_cannot_be(
    smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    command = ["routes", str(smollm2_path), "--text", str(text), "--quiet"]
    for what, why in ((TEXT, "has no experts"), ("few", "too few")):
        text.write_text(what)
        assert main(command) in (1, 2)
        assert why in capsys.readouterr().err
