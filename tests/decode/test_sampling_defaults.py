"""How tokens are chosen where nobody says: what the model states, then one default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.decode import SamplingParams
from strata.decode.defaults import SamplingDefaults, sampling_defaults
from strata.errors import UsageError
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.safetensors_writer import write_safetensors


def gguf(folder: Path, **keys: Any) -> SamplingDefaults:
    metadata = {"general.architecture": "llama", **{f"general.sampling.{k}": keys[k] for k in keys}}
    path = folder / "model.gguf"
    write_gguf(path, metadata, [])
    with open_model(path) as file:
        return sampling_defaults(file)


def directory(folder: Path, config: dict[str, Any] | None) -> SamplingDefaults:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_safetensors(folder / "model.safetensors", [])
    if config is not None:
        (folder / "generation_config.json").write_text(json.dumps(config))
    with open_model(folder) as file:
        return sampling_defaults(file)


def test_gguf_keys(tmp_path: Path) -> None:
    keys = {
        "temp": np.float32(0.6),
        "top_k": np.int32(20),
        "top_p": np.float32(0.95),
        "min_p": np.float32(0.05),
        "penalty_repeat": np.float32(1.05),
    }
    found = gguf(tmp_path, **keys)
    assert found.params == SamplingParams(
        temperature=0.6, top_k=20, top_p=0.95, min_p=0.05, repetition_penalty=1.05
    )
    assert found.source == "general.sampling"
    assert found.states["temperature"] == 0.6


def test_nothing_is_stated(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    for found in (gguf(tmp_path), directory(tmp_path / "hf", None)):
        assert found == SamplingDefaults(SamplingParams(), {}, None)


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({"eos_token_id": 2}, SamplingParams()),
        ({"temperature": 0.7, "top_p": 0.8}, SamplingParams(temperature=0.7, top_p=0.8)),
        ({"do_sample": True, "top_p": 0.9}, SamplingParams(temperature=1.0, top_p=0.9)),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        ({"top_k": 20}, SamplingParams(temperature=1.0, top_k=20)),
        ({"top_k": 0, "top_p": 1.0}, SamplingParams()),
        (
            {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
            SamplingParams(repetition_penalty=1.1),
        ),
    ],
)
def test_generation_config(tmp_path: Path, config: dict[str, Any], params: SamplingParams) -> None:
    assert directory(tmp_path, config).params == params


def test_what_a_caller_says_counts(tmp_path: Path) -> None:
    stated = directory(tmp_path, {"temperature": 0.6, "top_k": 20})
    assert stated.with_said({"temperature": 0.0, "seed": None}).temperature == 0
    assert stated.with_said({"top_p": 0.5}) == SamplingParams(temperature=0.6, top_k=20, top_p=0.5)
    silent = SamplingDefaults(SamplingParams(), {}, None)
    assert silent.with_said({}).temperature == 0
    # Who says how to draw means to.
    assert silent.with_said({"top_p": 0.9}).temperature == 1
    assert silent.with_said({}, choices=2).temperature == 1
    assert stated.with_said({}, choices=2).temperature == 0.6
    assert silent.with_said({"top_p": 0.9, "temperature": 0.0}).temperature == 0
    assert silent.with_said({"top_p": 1.0, "top_k": 0, "max_tokens": 5}).temperature == 0


@pytest.mark.parametrize("value", [-1, "warm", True, [1]])
def test_a_value_that_makes_no_sense(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"generation_config\.json of the model: temperature must"):
        directory(tmp_path, {"temperature": value})
