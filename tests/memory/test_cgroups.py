"""Real proof: models far larger than the control group that they run in, and no smaller answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cgroups import group, why_not

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SUPPORT = Path(__file__).resolve().parents[1] / "support"
MACHINE = SUPPORT / "machines" / "server.json"
REASON = why_not()
# They write 5 GB and take minutes.
LARGE = pytest.mark.skipif(
    "STRATA_TEST_LARGE" not in os.environ, reason="STRATA_TEST_LARGE is not set"
)


@cache
def without_a_budget(model: Path, sizes: tuple[int, int, int]) -> Any:
    return run(model, 0, None, sizes)


def run(model: Path, memory: int, limit: int | None, sizes: tuple[int, int, int]) -> Any:
    """``sizes`` are context, prompt and answer tokens; ``limit`` None runs outside any group."""
    numbers = map(str, (memory, *sizes))
    command = [
        sys.executable,
        str(SUPPORT / "run_in_budget.py"),
        str(model),
        str(MACHINE),
        *numbers,
    ]
    if limit is None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    else:
        with group(limit) as made:
            done = made.run(command, 1800)
    assert done.returncode == 0, f"return code {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize(
    ("shape", "recipe", "megabytes", "sizes"),
    [
        ("smollm2-135m", "Q4_1", 128, (256, 200, 40)),
        ("smollm2-135m", "Q4_1", 160, (1024, 900, 40)),
        ("smollm2-360m", "Q8_0", 160, (256, 200, 20)),
        ("smollm2-360m", "Q6_K", 256, (512, 300, 20)),
        ("qwen2.5-0.5b", "Q5_K_M", 256, (256, 100, 8)),
        ("qwen3-0.6b", None, 400, (256, 100, 8)),
        ("llama-3.2-1b", "Q8_0", 300, (256, 128, 8)),
        ("llama-3.2-1b", "Q8_0", 512, (256, 128, 8)),
        ("gemma-2-2b", "Q4_K_M", 700, (256, 64, 4)),
        *(
            pytest.param("llama-3.1-8b", "Q4_K_M", megabytes, (256, 64, 4), marks=LARGE)
            for megabytes in (400, 1000)
        ),
    ],
)
def test_a_model_in_a_group_of_its_budget(
    make_model: Callable[[str, str | None], Path],
    shape: str,
    recipe: str | None,
    megabytes: int,
    sizes: tuple[int, int, int],
) -> None:
    model, memory = make_model(shape, recipe), megabytes * 10**6
    got = run(model, memory, memory, sizes)
    assert got["streamed"] > 0
    assert got["peak"] <= got["predicted"] <= min(memory, 1.05 * got["peak"])
    assert got["used_bytes"] == got["sweeps"] * got["sweep_bytes"]
    want = without_a_budget(model, sizes)
    assert (got["tokens"], got["logprobs"]) == (want["tokens"], want["logprobs"])


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_budget_above_the_groups_is_the_groups(smollm2_path: Path) -> None:
    command = [sys.executable, "-m", "strata", "run", str(smollm2_path), "hi", "--max-tokens", "2"]
    free = subprocess.run([*command, "--memory", "10GB"], capture_output=True, text=True)
    with group(128_000_000) as made:
        done = made.run([*command, "--memory", "10GB"], 300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == free.stdout
    assert "128 MB of memory here" in done.stderr
    assert "are read in every sweep" in done.stderr


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_first_run_measures_the_machine_within_the_budget(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    command = [sys.executable, "-m", "strata", "run", str(smollm2_path), "hi", "--max-tokens", "2"]
    with group(128_000_000) as made:
        done = made.run([*command, "--memory", "128MB"], 300)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("megabytes", [110, 160, 200])
def test_a_machine_that_is_not_known_is_measured_within_the_group(
    megabytes: int, smollm2_path: Path, tmp_path: Path
) -> None:
    """Or not at all, which says why; nothing is killed."""
    words = ["env", f"STRATA_HOME={tmp_path}", sys.executable, "-m", "strata", "run"]
    words += [str(smollm2_path), "Hi", "--max-tokens", "2", "--memory", f"{megabytes}MB"]
    with group(megabytes * 10**6) as made:
        done = made.run(words, 300)
        assert made.kills == 0
    if done.returncode:
        assert re.search(r"not known yet: run .* more memory; measuring it takes", done.stderr)
    assert megabytes < 200 or done.returncode == 0, done.stderr


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_what_a_command_left_in_a_group_ends_with_it() -> None:
    with group(64 << 20) as made:
        left = ["sh", "-c", "sleep 600 > /dev/null 2>&1 & echo $!; sleep 600"]
        with pytest.raises(subprocess.TimeoutExpired) as ended:
            made.run(left, timeout=1)
        number = int(ended.value.stdout or 0)
        assert Path(f"/proc/{number}").exists()
    assert not made.directory.exists()
    assert not Path(f"/proc/{number}/exe").exists()
