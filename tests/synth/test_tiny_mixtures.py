"""Mixtures of few layers and small width, otherwise as published: written, read, run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from strata.llm import LLM
from strata.synth import SHAPES, Shape, with_layers, write_model

_DELTA = {"ssm.inner_size": 128, "ssm.time_step_rank": 4, "ssm.state_size": 32}
_WIDTHS = {
    "attention.kv_lora_rank": 32,
    "attention.value_length": 32,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "attention.q_lora_rank": 32,
    "rope.dimension_count": 16,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.dimension_count_swa": 16,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 64,
    "expert_group_count": 4,
    "expert_group_used_count": 2,
    "rope.dimension_sections": [3, 3, 2, 0],
}
_OF_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "qwen35moe": {**_DELTA, "ssm.group_count": 2},
    "granitehybrid": {**_DELTA, "ssm.inner_size": 256},
}


def tiny(name: str) -> Shape:
    """The first layers of a published mixture, one of each kind, in small."""
    shape = with_layers(SHAPES[name], 6 if name.startswith(("granite", "gemma")) else 4)
    keys = dict(shape.keys)
    for key, value in {**_WIDTHS, **_OF_FAMILIES.get(shape.family, {})}.items():
        if key in keys:
            keys[key] = value
    kv_heads = keys.get("attention.head_count_kv")
    if kv_heads is not None:
        keys["attention.head_count_kv"] = [2 if n else 0 for n in kv_heads]
    latent = shape.family == "deepseek2"
    return replace(
        shape,
        name=f"tiny-{name}",
        width=128,
        ffn=min(shape.ffn, 64),
        heads=4,
        kv_heads=1 if latent else 2,
        head_dim=48 if latent else 32,
        vocab=512,
        context=2048,
        experts=8 if shape.experts <= 8 else 16,
        top_k=min(shape.top_k, 4),
        keys=keys,
    )


NAMES = [name for name, shape in SHAPES.items() if shape.experts and not name.startswith("tiny-")]


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_in_small_is_written_and_runs(
    tmp_path: Path, smollm2_path: Path, name: str
) -> None:
    shape, path = tiny(name), tmp_path / "model.gguf"
    with open_model(smollm2_path) as source:
        write_model(shape, path, recipe="Q8_0", tokenizer=dict(source.metadata))
    with LLM(path, threads=1, context=64) as llm:
        scores = llm.engine.logprobs(list(range(20, 52)), 0)
    assert np.isfinite(scores).all()
    assert scores.min() > -50
