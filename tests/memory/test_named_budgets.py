"""Whoever gives too little is told a budget in which the same command then runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from obeyed import SCRIPTS, SERVE, six_scripts

FEW = ("--max-tokens", "4", "--threads", "1")
TEXTS = {
    "short": "Hello",
    "long": SCRIPTS[0] * 75,
    "scripts": six_scripts(20_000)[:1200],
}
COMMANDS = {
    "run": ("run", "MODEL", *FEW),
    "raw": ("run", "MODEL", *FEW, "--raw"),
    "in a context": ("run", "MODEL", *FEW, "--raw", "--context", "4000"),
    "perplexity": ("perplexity", "MODEL", "--text", "TEXT", "--chunks", "1"),
    "perplexity of long windows": (
        *("perplexity", "MODEL", "--text", "TEXT", "--chunks", "1", "--context", "1024"),
    ),
}
CASES = [
    ("run", "short"),
    pytest.param("run", "long", marks=pytest.mark.slow),
    pytest.param("raw", "scripts", marks=pytest.mark.slow),
    pytest.param("in a context", "long", marks=pytest.mark.slow),
    pytest.param("perplexity", "scripts", marks=pytest.mark.slow),
    pytest.param("perplexity of long windows", "long", marks=pytest.mark.slow),
]


def said(words: tuple[str, ...], model: Path, memory: str, text: str) -> tuple[int, str]:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        places = {"MODEL": str(model), "TEXT": file.name}
        return _done([places.get(word, word) for word in words], memory, text)


def _done(words: Sequence[str], memory: str, text: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "strata", *words, "--memory", memory],
        input=text,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def named(error: str) -> str:
    found = re.search(r"needs (\d+)MB", error)
    assert found is not None, error
    return f"{found[1]}MB"


# From less than the tokenizer takes, and from where the text can be counted.
@pytest.mark.parametrize("given", ["20MB", pytest.param("88MB", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("command", "text"), CASES)
def test_the_named_budget_does(command: str, text: str, given: str, smollm2_path: Path) -> None:
    words, prompt = COMMANDS[command], TEXTS[text]
    code, error = said(words, smollm2_path, given, prompt)
    if given != "20MB" and code == 0:
        return
    assert code == 2, error
    code, error = said(words, smollm2_path, named(error), prompt)
    assert code == 0, error


def test_a_server_is_told_at_once(smollm2_path: Path) -> None:
    model = str(smollm2_path)
    error = subprocess.run(SERVE.words(model, "20MB"), capture_output=True, text=True).stderr
    words = SERVE.words(model, named(error))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while lines[-1] and not lines[-1].startswith("listening"):
            lines.append(process.stderr.readline())
        process.terminate()
        assert lines[-1], lines
