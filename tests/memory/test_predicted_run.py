"""``strata run`` plans for the prompt and answer it is asked for, and takes what it predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MACHINE = Path(__file__).resolve().parents[1] / "support" / "machines" / "server.json"
# On a machine that is known already, so that none is measured.
RUN = """
import sys
from dataclasses import replace
from pathlib import Path
import strata.engine.runtime as runtime
from strata.backends.cpu.host import available_isas
from strata.cli import main
from strata.machine.probe import load_machine

machine = replace(load_machine(Path(sys.argv[1])), isa=available_isas()[0], cores=2)
runtime.this_machine = lambda file: machine
sys.exit(main(["run", *sys.argv[2:]]))
"""
LONG = "The sea is wide and deep, and " * 70


def run(model: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-c", RUN, str(MACHINE), str(model), *options]
    always = ("--explain", "--json", "--threads", "2")
    done = subprocess.run([*command, *always], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("prompt", "tokens", "memory"),
    [
        ("Hi", 3, "120MB"),
        pytest.param("Hi", 3, "150MB", marks=pytest.mark.slow),
        pytest.param("Hi", 3, "190MB", marks=pytest.mark.slow),
        pytest.param("Hi", 300, "135MB", marks=pytest.mark.slow),
        pytest.param("Hi", 300, "1GB", marks=pytest.mark.slow),
        (LONG, 8, "150MB"),
        pytest.param(LONG, 8, None, marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_the_one_predicted(
    smollm2_path: Path, prompt: str, tokens: int, memory: str | None
) -> None:
    options = ("--draft", "off") if memory is None else ("--draft", "off", "--memory", memory)
    got = run(smollm2_path, prompt, "--max-tokens", str(tokens), "--ignore-eos", "--raw", *options)
    assert got["completion_tokens"] == tokens
    peak, predicted = got["memory"]["peak_bytes"], got["explanation"]["predicted_peak_bytes"]
    assert peak <= predicted <= 1.05 * peak


@pytest.mark.slow
def test_guesses_are_counted_as_if_all_were_made(smollm2_path: Path) -> None:
    """How many are depends on what they save, which is measured while running."""
    options = ("--max-tokens", "300", "--ignore-eos", "--raw", "--memory", "1GB")
    off = run(smollm2_path, "Hi", *options, "--draft", "off")
    auto = run(smollm2_path, "Hi", *options, "--draft", "auto")
    predicted, plain = (got["explanation"]["predicted_peak_bytes"] for got in (auto, off))
    assert plain < predicted
    assert auto["memory"]["peak_bytes"] <= predicted
    owned = auto["explanation"]["owned"]
    assert predicted - plain <= 1.05 * (owned["drafts"] + owned["logits"])


def test_a_conversation_counts_its_template(smollm2_path: Path) -> None:
    options = ("--max-tokens", "5", "--memory", "150MB", "--system", LONG, "--draft", "off")
    got = run(smollm2_path, "Hi", *options)
    assert got["prompt_tokens"] > 500
    peak, predicted = got["memory"]["peak_bytes"], got["explanation"]["predicted_peak_bytes"]
    assert peak <= predicted <= 1.05 * peak


@pytest.mark.slow
def test_the_answer_that_is_asked_for_has_room(smollm2_path: Path) -> None:
    """Where memory is short the context shrinks, but not below what was asked for."""
    short = run(smollm2_path, "Hi", "--raw", "--max-tokens", "3", "--memory", "115MB")
    options = ("--raw", "--max-tokens", "900", "--ignore-eos", "--memory", "140MB")
    long = run(smollm2_path, "Hi", *options)
    assert short["context"] < 900 < long["context"]
    assert long["completion_tokens"] == 900
