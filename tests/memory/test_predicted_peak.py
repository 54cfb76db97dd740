"""The predicted peak is the one that comes: never below it, and not 5 % above."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
MACHINE = SUPPORT / "machines" / "server.json"
# KV is reserved for a context of which the workload uses a quarter.
CONTEXT, PROMPT, ANSWER = 1024, 200, 24
BUDGETS = {"floor": -1, "middle": -2, "all resident": -3}


def check(model: Path, budget: str) -> None:
    numbers = map(str, (BUDGETS[budget], CONTEXT, PROMPT, ANSWER))
    script = [sys.executable, str(SUPPORT / "run_in_budget.py"), str(model), str(MACHINE), *numbers]
    done = subprocess.run(script, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert (got["streamed"] == 0) == (budget == "all resident")
    assert got["peak"] <= got["predicted"] <= 1.05 * got["peak"]
    assert max(got["predicted"], got["reserved"]) <= got["budget"]


@pytest.mark.parametrize(
    "budget", ["floor", *(pytest.param(b, marks=pytest.mark.slow) for b in BUDGETS if b != "floor")]
)
def test_a_small_model(smollm2_path: Path, budget: str) -> None:
    check(smollm2_path, budget)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("shape", "recipe"),
    # Those that are in control groups, too; `bench/budgets.py` has more of them, up to 8B.
    [("llama-3.2-1b", "Q8_0"), ("qwen3-0.6b", None)],
)
def test_a_matrix_of_models(
    make_model: Callable[[str, str | None], Path], shape: str, recipe: str | None, budget: str
) -> None:
    check(make_model(shape, recipe), budget)
