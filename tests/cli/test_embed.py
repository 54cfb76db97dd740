"""``strata embed``: one line of numbers a text, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

pytest.importorskip("strata._native")

from support.command_line import strata


def embed(*args: str, stdin: str = "") -> CompletedProcess[str]:
    return strata("embed", *args, stdin=stdin)


def test_lines_json_and_files_say_the_same(smollm2_path: Path, tmp_path: Path) -> None:
    model = str(smollm2_path)
    plain = embed(model, "The cat sat.", "Rates rose.", "--dimensions", "8")
    assert (plain.returncode, plain.stderr) == (0, "")
    rows = np.array([[float(x) for x in line.split()] for line in plain.stdout.splitlines()])
    assert rows.shape == (2, 8)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    (tmp_path / "lines.txt").write_text("The cat sat.\nRates rose.\n")
    done = embed(model, "--file", str(tmp_path / "lines.txt"), "--json", "--dimensions", "8")
    said = json.loads(done.stdout)
    assert said["dimensions"] == 8
    assert np.allclose(said["embeddings"], rows, atol=1e-7)
    piped = embed(model, "--dimensions", "8", stdin="The cat sat.\nRates rose.\n")
    assert piped.stdout == plain.stdout
    # Planned for these texts, and in no more than that.
    budgeted = embed(model, "The cat sat.", "Rates rose.", "--dimensions", "8", "--memory", "150MB")
    assert budgeted.stdout == plain.stdout


def test_many_texts_come_as_each_alone_would(smollm2_path: Path) -> None:
    """More than are worked on at a time."""
    texts = [f"Number {i} of them." for i in range(40)]
    options = ("--dimensions", "4", "--context", "32")
    plain = embed(str(smollm2_path), *options, stdin="\n".join(texts))
    rows = plain.stdout.splitlines()
    assert (plain.returncode, len(rows)) == (0, 40)
    last = embed(str(smollm2_path), texts[-1], *options)
    assert last.stdout.splitlines() == rows[-1:]
    said = json.loads(embed(str(smollm2_path), *options, "--json", stdin="\n".join(texts)).stdout)
    assert len(said["embeddings"]) == 40
    late = embed(str(smollm2_path), *options, "--json", stdin="\n".join([*texts, "long " * 40]))
    assert late.returncode == 2
    assert "text 41 has" in json.loads(late.stdout)["error"]["message"]
    assert np.allclose(said["embeddings"][39], [float(x) for x in rows[-1].split()], atol=1e-7)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a", "--file", __file__], "not both"),
        ([], "no text"),
        (["a", " "], "text 2 is empty"),
        (["a", "--dimensions", "577"], "have 576"),
        (["a", "--memory", "10MB"], "needs"),
        (["long " * 9000], "text 1 has 9001 tokens"),
    ],
)
def test_refusals_are_one_line(smollm2_path: Path, args: list[str], said: str) -> None:
    done = embed(str(smollm2_path), *args)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_object_that_was_begun_is_ended(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from strata import LLM, StrataError
    from strata.cli import embed as verb  # noqa: F401
    from strata.cli import main

    asked: list[int] = []
    real = LLM.embed

    def fails_later(self: LLM, texts: list[list[int]], **options: object) -> object:
        asked.append(len(texts))
        if len(asked) == 2:
            raise StrataError("it broke")
        return real(self, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LLM, "embed", fails_later)
    texts = [f"Number {i}" for i in range(40)]
    assert (
        main(["embed", str(smollm2_path), *texts, "--json", "-c", "16", "--dimensions", "2"]) == 1
    )
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert len(said["embeddings"]) == asked[0] < 40
    assert said["error"] == {"type": "StrataError", "message": "it broke"}
    assert err == "strata: error: it broke\n"
