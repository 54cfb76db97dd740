"""Paths to what other rooms' tests share: runs of whole models, and tiny ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from strata.formats import open_model
from strata.synth import SHAPES, write_model


@pytest.fixture(scope="session")
def make_model(
    tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path
) -> Iterator[Callable[[str, str | None], Path]]:
    """Makes a model of a shape and quantisation, or finds the one that it made before."""
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
