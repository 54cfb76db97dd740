"""Latent attention from GGUF files of random weights: absorbed into the query and the outcome it is
what keys and values of every head give, and it keeps what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import open_model
from strata.models import build_model, trained_context
from strata.models.errors import ConfigError
from strata.program import PagedKV
from support.forward import Forward
from support.latent_models import HEADS, NOPE, RANK, ROPE, VALUE, write

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 96, 70)]


def test_absorbed_is_what_every_head_gives(tmp_path: Path) -> None:
    with open_model(write(tmp_path / "a.gguf")) as file:
        absorbed = Forward(file)
        assert absorbed.model.state == (PagedKV(1, RANK + ROPE, RANK, v_in_k=True),) * 2
        got = absorbed.logits(TOKENS)
    with open_model(write(tmp_path / "b.gguf", absorbed=False)) as file:
        apart = Forward(file)
        assert apart.model.state == (PagedKV(HEADS, NOPE + ROPE, VALUE),) * 2
        want = apart.logits(TOKENS)
    assert np.abs(want).max() > 1
    # Sums of as many products in another order, in two layers.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("absorbed", [True, False])
def test_bits_depend_on_the_tokens_alone(absorbed: bool, tmp_path: Path) -> None:
    with open_model(write(tmp_path / "m.gguf", absorbed=absorbed)) as file:
        want = Forward(file, backend=ReferenceBackend(KV_TYPES[0])).logits(TOKENS)
        run = Forward(file, backend=CpuBackend(threads=1))
        got = run.logits(TOKENS)
        # Some element of a key may be rounded the other way: 2^-11 of it.
        assert np.abs(got - want).max() < 2.0**-9 * np.abs(want).max()
        for threads in (2, 4):
            run = Forward(file, backend=CpuBackend(threads=threads))
            assert run.logits(TOKENS, [7, 1, 30, 32]).tobytes() == got.tobytes()


def test_a_temperature_grows_with_the_position(tmp_path: Path) -> None:
    with open_model(write(tmp_path / "a.gguf")) as file:
        without = Forward(file).logits(TOKENS)
    stated = {"attention.temperature_scale": 0.5, "attention.temperature_length": 40}
    found = []
    for absorbed in (True, False):
        with open_model(write(tmp_path / "b.gguf", absorbed=absorbed, **stated)) as file:
            found.append(Forward(file).logits(TOKENS))
    np.testing.assert_array_equal(found[0][:40], without[:40])
    assert np.abs(found[0][40:] - without[40:]).max(axis=1).min() > 1e-3
    np.testing.assert_allclose(*found, rtol=0, atol=2e-5 * np.abs(without).max())


def test_an_indexer_that_would_choose_all_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture="deepseek32", **{"attention.indexer.top_k": 128})
    with open_model(path) as file:
        assert trained_context(file) == 128
        assert len(build_model(file).groups) == 1
    path = write(tmp_path / "n.gguf", architecture="deepseek32", **{"attention.indexer.top_k": 127})
    with open_model(path) as file, pytest.raises(ConfigError, match=r"indexer\.head_count"):
        build_model(file)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope.dimension_count": NOPE + ROPE}, "keys of 48 of which 48 are rotated"),
        ({"attention.kv_lora_rank": 0}, "kv_lora_rank"),
        ({"attention.q_lora_rank": -1}, "q_lora_rank"),
        ({"attention.value_length_mla": 1 << 40}, "value_length_mla"),
        ({"nextn_predict_layers": 2}, "nextn_predict_layers"),
        ({"attention.temperature_scale": 0.5}, "temperature_length"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with (
        open_model(write(tmp_path / "m.gguf", **change)) as file,
        pytest.raises(ConfigError, match=named),
    ):
        build_model(file)
