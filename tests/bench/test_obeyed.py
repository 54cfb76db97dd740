"""Verbs in control groups of their smallest budgets; all of them are in `bench/obeyed.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgroups import why_not
from obeyed import at_the_smallest, commands, six_scripts, smallest

REASON = why_not()
LONG = ("run 1 MB", "run 1 MB of A", "chat", "perplexity", "tokenize pieces", "tokenize of A")


def test_texts_are_of_all_scripts() -> None:
    text = six_scripts(200_000)
    assert 200_000 <= len(text.encode()) < 250_000
    for letters in ("fox", "ещё", "今天", "العربية", "\U0001f642", "314"):
        assert letters in text


def test_only_what_has_a_budget_is_given_one(tmp_path: Path) -> None:
    made = {command.name: command for command in commands(tmp_path)}
    assert set(LONG) <= set(made)
    assert made["run"].words("m", "9MB")[-2:] == ["--memory", "9MB"]
    assert "--memory" not in made["tokenize"].words("m", "9MB")
    assert made["tokenize"].words("m", "9MB")[3:5] == ["tokenize", "m"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_long_texts_in_the_smallest_budgets(smollm2_path: Path, tmp_path: Path) -> None:
    made = {command.name: command for command in commands(tmp_path)}
    model = str(smollm2_path)
    answering = smallest(model, made["run"])
    for name in LONG:
        budget, row = at_the_smallest(made[name], model, answering)
        assert row["holds"], (name, budget, row)
