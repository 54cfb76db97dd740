"""Streamed logits are the resident ones, bit by bit, for every family, file and way of reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import make_tiny_models
from strata.formats import ModelFile, open_model
from strata.synth import RECIPES, SHAPES, write_model
from support.streaming import faults, forward, least_ring, logits, settings, units

NAMES = make_tiny_models.names()
GGUF_NAMES = [n for n in NAMES if make_tiny_models.golden(n).architecture is not None]
TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 40)]


def check(file: ModelFile, context: int | None = None, tokens: list[int] | None = None) -> None:
    """All of it streamed, by tiles from single panels up, and every second unit: of layers the
    attention's weights or the feed-forward's."""
    tokens = tokens or TOKENS
    names = units(file, context)
    want = logits(file, None, tokens, context)
    for tile in (1, 20_000, 1 << 20):
        how = settings(names, tile=tile, ring=max(least_ring(file, tile, context), 3 * tile))
        run = forward(file, how, context)
        assert run.logits(tokens).tobytes() == want.tobytes()
        cut = [1, 7, len(tokens) - 8]
        assert run.logits(tokens, cut).tobytes() == want.tobytes()
    for some in (names[::2], names[1::2], names[::3], names[-1:], names[:1]):
        assert logits(file, settings(some), tokens, context).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_huggingface_directory(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        check(file, golden.context, list(golden.tokens))


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_gguf(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_gguf(tmp_path / "m.gguf", golden)) as file:
        check(file, golden.context, list(golden.tokens))


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Iterator[Mapping[str, Any]]:
    with open_model(smollm2_path) as file:
        yield dict(file.metadata)


@pytest.mark.parametrize("recipe", [*RECIPES, None])
def test_every_format(recipe: str | None, tmp_path: Path, tokenizer: Mapping[str, Any]) -> None:
    out = tmp_path / ("model" if recipe is None else "model.gguf")
    write_model(SHAPES["tiny-llama"], out, recipe=recipe, tokenizer=tokenizer)
    with open_model(out) as file:
        names = units(file)
        want = logits(file, None, TOKENS)
        for tile in (1, 1 << 18):
            how = settings(names, tile=tile, ring=max(least_ring(file, tile), 3 * tile))
            assert logits(file, how, TOKENS).tobytes() == want.tobytes()


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[ModelFile]:
    with open_model(smollm2_path) as file:
        yield file


@pytest.fixture(scope="module")
def want(model: ModelFile) -> NDArray[np.float32]:
    return logits(model, None, TOKENS)


@pytest.mark.parametrize(("threads", "direct"), [(1, False), (5, True)])
def test_real_model_under_delays(
    model: ModelFile, want: NDArray[np.float32], threads: int, direct: bool
) -> None:
    names = units(model)
    how = settings(
        names, ring=3 << 20, tile=1 << 20, threads=threads, request=1 << 18, direct=direct
    )
    run = forward(model, how)
    for seed in (1, 2):
        # Reads come back up to a millisecond late, and so in any order.
        with faults(delay_us=1000, seed=seed):
            assert run.logits(TOKENS, [30, 10]).tobytes() == want.tobytes()


def test_a_loaded_weight_is_packed_alike_in_parts(
    model: ModelFile, want: NDArray[np.float32]
) -> None:
    for request, threads in ((1, 1), (100_000, 4)):
        how = settings([], request=request, threads=threads)
        assert logits(model, how, TOKENS).tobytes() == want.tobytes()
