"""Real proof: models far larger than the control group that they run in, and no smaller answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cgroups import group, why_not
from strata.formats import open_model
from strata.synth import SHAPES, write_model

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
MACHINE = HERE.parent / "plan" / "machines" / "server.json"
REASON = why_not()


def run(model: Path, memory: int, limit: int | None, sizes: tuple[int, int, int]) -> Any:
    """``sizes`` are context, prompt and answer tokens; ``limit`` None runs outside any group."""
    numbers = map(str, (memory, *sizes))
    command = [sys.executable, str(HERE / "run_in_budget.py"), str(model), str(MACHINE), *numbers]
    if limit is None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    else:
        with group(limit) as made:
            done = made.run(command, 1800)
    assert done.returncode == 0, f"return code {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path
) -> Iterator[Callable[[str, str | None], Path]]:
    made: dict[tuple[str, str | None], Path] = {}

    def make(shape: str, recipe: str | None) -> Path:
        if (shape, recipe) == ("smollm2-135m", "Q4_1"):
            return smollm2_path
        if (shape, recipe) not in made:
            directory = tmp_path_factory.mktemp("models")
            need = 20 << 30 if "8b" in shape else 6 << 30
            if shutil.disk_usage(directory).free < need:
                pytest.skip(f"{need >> 30} GiB of disk are needed for {shape}")
            with open_model(smollm2_path) as file:
                tokenizer: Mapping[str, Any] = dict(file.metadata)
            out = directory / ("model" if recipe is None else "model.gguf")
            write_model(SHAPES[shape], out, recipe=recipe, tokenizer=tokenizer)
            made[shape, recipe] = out
        return made[shape, recipe]

    yield make
    # Pytest would keep the files of three runs.
    for path in made.values():
        shutil.rmtree(path.parent)


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
        ("llama-3.1-8b", "Q4_K_M", 400, (256, 64, 4)),
        ("llama-3.1-8b", "Q4_K_M", 1000, (256, 64, 4)),
    ],
)
def test_a_model_in_a_group_of_its_budget(
    make: Callable[[str, str | None], Path],
    shape: str,
    recipe: str | None,
    megabytes: int,
    sizes: tuple[int, int, int],
) -> None:
    model, memory = make(shape, recipe), megabytes * 10**6
    got = run(model, memory, memory, sizes)
    assert got["streamed"] > 0
    assert got["peak"] <= got["predicted"] <= memory
    assert got["used_bytes"] == got["sweeps"] * got["sweep_bytes"]
    want = run(model, 0, None, sizes)
    assert (got["tokens"], got["logprobs"]) == (want["tokens"], want["logprobs"])
