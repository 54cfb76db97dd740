"""``strata rank``: the best text first, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

pytest.importorskip("strata._native")

from strata import LLM
from support.command_line import strata
from support.encoders import encoder, words

QUERY = "what is a panda"
TEXTS = ["hi", "a giant panda is a bear", "it is warm in the south"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    vocabulary = words(QUERY, *TEXTS)
    return str(encoder(tmp_path / "m.gguf", types=1, ranks=True, **vocabulary))


def rank(*args: str, stdin: str = "") -> CompletedProcess[str]:
    return strata("rank", *args, stdin=stdin)


def test_the_best_text_comes_first(model: str) -> None:
    with LLM(model, embedding=True) as llm:
        scores = llm.rank(QUERY, TEXTS)
        # Both texts between the tokens around a text, the end of the first twice.
        ids = [llm.tokenize(text, add_special=True) for text in (QUERY, TEXTS[1])]
        assert (ids[0][0], ids[0][-1]) == (0, 2)
        pair = [*ids[0], 2, *ids[1][1:]]
        assert llm.rank("", [pair])[0] == scores[1]
    assert len(set(scores.tolist())) == 3
    order = np.argsort(-scores)
    plain = rank(model, QUERY, *TEXTS)
    assert (plain.returncode, plain.stderr) == (0, "")
    lines = [line.split("\t") for line in plain.stdout.splitlines()]
    assert [text for _, text in lines] == [TEXTS[i] for i in order]
    assert np.allclose([float(score) for score, _ in lines], scores[order], rtol=1e-5)
    done = rank(model, QUERY, "--json", "--memory", "200MB", stdin="\n".join(TEXTS))
    results = json.loads(done.stdout)["results"]
    assert [each["index"] for each in results] == order.tolist()
    assert np.array_equal(np.float32([each["score"] for each in results]), scores[order])


def test_refusals_are_one_line(model: str, smollm2_path: Path, tmp_path: Path) -> None:
    for args, said in (
        ([str(smollm2_path), QUERY, "a"], "cannot rank"),
        ([model, QUERY], "no text"),
        ([model, QUERY, "warm " * 300], "256"),
        ([str(encoder(tmp_path / "two.gguf", ranks=True)), QUERY, "a"], "another type"),
    ):
        done = rank(*args)
        assert done.returncode in (1, 2)
        assert done.stdout == ""
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
