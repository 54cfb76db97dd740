"""``strata quality``: tables, JSON, pictures, what is kept, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

pytest.importorskip("strata._native")

from support.command_line import strata

TEXT = " ".join(f"Number {i} of the {i % 7} little stories was told again." for i in range(24))
QUESTIONS = [
    {"query": "The capital of France is", "choices": ["Paris", "a banana"], "gold": 0},
    {"query": "One, two, three,", "choices": ["purple", "four"], "gold": 1},
]


def quality(*args: str, home: Path | None = None) -> CompletedProcess[str]:
    known = {} if home is None else {"STRATA_HOME": str(home)}
    with patch.dict(os.environ, known):
        return strata("quality", *args)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.slow
def test_a_lossy_kv_type_against_the_usual_one(
    smollm2_path: Path, tmp_path: Path, text: str
) -> None:
    """The same weights, so that what is lost is the KV's alone."""
    model, kept = str(smollm2_path), tmp_path / "logits"
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("\n".join(map(json.dumps, QUESTIONS)))
    given = ["--text", text, "--base", model, "-c", "32", "--chunks", "3", "--logits", str(kept)]
    lossy = ["--kv-type", "q8_0", "--base-kv-type", "f16"]
    done = quality(
        model, *given, *lossy, "--layers", "--tasks", str(tasks), "--json", "--memory", "400MB"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    (found,) = said["models"]
    assert (said["windows"], found["tokens"], found["kv_type"]) == (3, 45, "q8_0")
    assert 0 < found["kl"]["value"] < 0.01
    assert found["kl"]["low"] <= found["kl"]["value"] <= found["kl"]["high"]
    errors = {e["segment"]: e["relative_error"] for e in found["layers"]}
    assert errors["embed"] == 0
    assert 0 < errors["layer.29"] < 0.2
    assert found["tasks"]["acc"]["value"] == said["base_tasks"]["acc"]["value"] == 1
    assert found["tasks"]["acc"]["change"] == 0
    assert said["memory"]["peak_bytes"] <= 400e6
    # The base need not be there any more, and the kept logits are its bits.
    alone = quality(model, *given[:2], *given[4:], "--kv-type", "f16")
    assert alone.returncode == 0, alone.stderr
    row = alone.stdout.splitlines()[1].split()
    assert row[row.index("+0.0000") + 2] == "0.00000"
    assert kept.stat().st_size == 4096 + 3 * (4 * 15 * 49152 + 4)
    # What is of another text is not taken for it.
    Path(text).write_text("Another " + TEXT)
    other = quality(model, *given[:2], *given[4:])
    assert (other.returncode, other.stdout) == (2, "")
    assert "another text" in other.stderr
    ours = quality(model, *given)
    assert ours.returncode == 1
    assert "the text, or how much of it is scored differs" in ours.stderr


@pytest.mark.slow
def test_parts_of_the_text_as_all_of_it(smollm2_path: Path, tmp_path: Path, text: str) -> None:
    """Where the disk has room for two windows of logits; and nothing stays there."""
    model, home = str(smollm2_path), tmp_path / "home"
    given = ["--text", text, "--base", model, "-c", "16", "--chunks", "3", "--json", "--whole"]
    lossy = ["--kv-type", "q8_0", "--base-kv-type", "f16"]
    one = json.loads(quality(model, *given, *lossy, home=home).stdout)
    # A window of 15 rows takes 2.95 MB.
    parts = quality(model, *given, *lossy, "--scratch-size", "6MB", home=home)
    two = json.loads(parts.stdout)
    assert parts.stderr.count("logits of the base") == 3
    for said in (one, two):
        del said["memory"], said["models"][0]["seconds"]
    assert one == two
    assert list((home / "scratch").iterdir()) == []


def test_a_table_and_a_picture_without_a_base(
    smollm2_path: Path, tmp_path: Path, text: str
) -> None:
    model, svg = str(smollm2_path), tmp_path / "a.svg"
    done = quality(
        model, model, "--text", text, "-c", "16", "--chunks", "2", "--svg", str(svg), "--positions"
    )
    assert done.returncode == 0, done.stderr
    assert "best for their bytes" in done.stdout
    assert "few windows" in done.stdout
    assert svg.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--text"),
        (["--text", "TEXT", "--layers"], "--base"),
        (["--tasks", "TEXT"], "line 1 is not JSON"),
        (["--tasks", "TEXT", "--svg", "a.svg"], "of a --text"),
        (["--text", "TEXT", "--logits", "gone"], "give the --base"),
        (["--text", "TEXT", "--chunks", "99"], "enough for"),
        (["--text", "TEXT", "--memory", "20MB"], "needs"),
        pytest.param(
            ["--text", "TEXT", "-c", "16", "--base", "MODEL", "--scratch-size", "1MB"],
            "--scratch",
            marks=pytest.mark.slow,
        ),
        (["--text", "TEXT", "--base", "no-such-model"], "no-such-model"),
        (["--text", "TEXT", "--logits", "MODEL"], "is not a file of logits"),
    ],
)
def test_quality_refuses_in_one_line(
    smollm2_path: Path, text: str, args: list[str], said: str
) -> None:
    words = {"TEXT": text, "MODEL": str(smollm2_path)}
    done = quality(str(smollm2_path), "-q", *(words.get(a, a) for a in args))
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
