"""Whole mixtures of experts: streaming, steps, threads and batches change no bit of the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK, Activations, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.formats import open_model
from strata.models import build_model
from support.forward import Forward
from support.streaming import faults, forward, least_ring, logits, settings, units

Make = Callable[[str, str | None], Path]
TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 40)]
MIXTURES = ["tiny-qwen3moe", "tiny-mixtral"]


@pytest.mark.parametrize(
    "recipe",
    [
        "Q4_K_M",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("Q8_0", "BF16", "F32", "MXFP4")),
    ],
)
@pytest.mark.parametrize("name", MIXTURES)
def test_streamed_is_resident(name: str, recipe: str, make_model: Make) -> None:
    with open_model(make_model(name, recipe)) as file:
        names = units(file)
        assert "layer.0.experts" in names
        want = logits(file, None, TOKENS)
        for tile in (1, 30_000, 1 << 20):
            how = settings(names, tile=tile, ring=max(least_ring(file, tile), 3 * tile))
            run = forward(file, how)
            with faults(delay_us=300, seed=tile):
                assert run.logits(TOKENS).tobytes() == want.tobytes()
                assert run.logits(TOKENS, [1, 7, 32]).tobytes() == want.tobytes()
        for some in ([n for n in names if "experts" in n], names[::2]):
            assert logits(file, settings(some), TOKENS).tobytes() == want.tobytes()


@pytest.mark.parametrize("recipe", ["Q4_K_M", "BF16", None])
@pytest.mark.parametrize("name", MIXTURES)
def test_threads_and_steps(name: str, recipe: str | None, make_model: Make) -> None:
    with open_model(make_model(name, recipe)) as file:
        want = Forward(file, backend=CpuBackend(threads=1)).logits(TOKENS)
        for threads in (2, 3, 4):
            run = Forward(file, backend=CpuBackend(threads=threads))
            assert run.logits(TOKENS, [13, 1, 26]).tobytes() == want.tobytes()
        assert run.logits(TOKENS, [1] * len(TOKENS)).tobytes() == want.tobytes()


@pytest.mark.parametrize("recipe", ["Q4_K_M", "F32"])
@pytest.mark.parametrize("name", MIXTURES)
def test_sequences_of_a_step_are_sequences_alone(name: str, recipe: str, make_model: Make) -> None:
    with open_model(make_model(name, recipe)) as file:
        run = Forward(file, backend=CpuBackend(threads=2))
        parts = [TOKENS[:17], TOKENS[17:20], TOKENS[20:21], TOKENS[21:]]
        want = [run.logits(part) for part in parts]
        state = run.backend.state_cache(run.model.state, (len(parts),))
        ends = np.cumsum([len(part) for part in parts])
        spans = tuple(
            Span(int(end) - len(part), len(part), 0, (np.array([i], np.int32),))
            for i, (part, end) in enumerate(zip(parts, ends, strict=True))
        )
        assert max(len(part) for part in parts) <= KV_BLOCK
        positions = np.concatenate([np.arange(len(part)) for part in parts]).astype(np.int32)
        together = Step(
            np.array(TOKENS, np.int32), positions, spans, np.arange(len(TOKENS), dtype=np.int32)
        )
        values: Activations = {}
        for segment in run.segments:
            values = run.backend.run(segment, together, state, values)
        got = run.backend.export(values, ("logits",))["logits"]
        assert got.tobytes() == np.concatenate(want).tobytes()


def test_experts_that_are_kept_apart(make_model: Make) -> None:
    """A Hugging Face directory has a tensor for each matrix of each expert."""
    with open_model(make_model("tiny-qwen3moe", None)) as file:
        layer = build_model(file).segments[1]
        up = next(w for w in layer.weights if w.name == "blk.0.ffn_up_exps.weight")
        assert len(up.experts) == up.shape[0] == 16
        got = Forward(file, backend=CpuBackend(threads=2)).logits(TOKENS)
        want = Forward(file).logits(TOKENS)
        assert np.mean((got - want) ** 2) < 1e-4 * np.mean(want**2)
        dense = [n for n in units(file) if "experts" not in n]
        for names in (dense, units(file)):
            assert logits(file, settings(names), TOKENS).tobytes() == got.tobytes()
