"""Every family of ``mixtures.py`` from a GGUF file of random weights: it is built, the native
backend agrees with the reference, and what a family has in particular changes the logits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import TensorInfo, open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.header_only import HeaderOnly
from strata.formats.writing import TensorSource
from strata.models import mixtures
from strata.models.config import read_config
from strata.quant import by_name
from support.forward import Forward

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 96, 24)]
KEYS = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_count": 8,
    "expert_used_count": 3,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
}


def write(path: Path, architecture: str, **more: Any) -> Path:
    """All tensors that the family may have, those of experts from the second layer on."""
    keys = {f"{architecture}.{key}": value for key, value in {**KEYS, **more}.items()}
    metadata = {"general.architecture": architecture, **keys}
    tensors: dict[str, TensorInfo] = {}
    info = by_name("F32")
    vocabulary = TensorInfo("token_embd.weight", (96, 64), info, path, 0, 4 * 96 * 64)
    tensors["token_embd.weight"] = vocabulary
    tensors["output.weight"] = replace(vocabulary, name="output.weight")
    table = HeaderOnly("gguf", path, metadata, tensors)
    row = mixtures.GGUF[architecture]
    c = read_config(table, architecture, None, experts=True)
    mixture = mixtures.read(c, row)
    assert mixture is not None
    sources = []
    for seed, (name, tensor) in enumerate(mixtures.tensors(c, row).items()):
        if name.startswith("rope") or name.endswith("scale"):
            continue
        for i in range(c.layers) if "{i}" in name else (0,):
            routed = "_exp" in name or "_shexp" in name or "gate_inp" in name or "exp_" in name
            feeds = name.startswith("blk") and ".ffn_" in name and "norm" not in name
            if "{i}" in name and (routed or feeds) and routed != mixture.layers[i]:
                continue
            drawn = np.random.default_rng((seed, i)).standard_normal(tensor.shape)
            drawn *= 0.2 if len(tensor.shape) == 1 else tensor.shape[-1] ** -0.5
            drawn += len(tensor.shape) == 1 and name.endswith("weight")
            raw = drawn.astype(np.float32).reshape(-1).view(np.uint8)
            sources.append(
                TensorSource(name.replace("{i}", str(i)), tensor.shape, info, partial(_one, raw))
            )
    write_gguf(path, metadata, sources)
    return path


def _one(raw: Any) -> list[Any]:
    return [raw]


@pytest.mark.parametrize("architecture", sorted(mixtures.GGUF))
def test_every_row(architecture: str, tmp_path: Path) -> None:
    with open_model(write(tmp_path / "m.gguf", architecture)) as file:
        # Keys and values are rounded alike, so that no router is near enough to choose another.
        want = Forward(file, backend=ReferenceBackend(KV_TYPES[0])).logits(TOKENS)
        assert np.isfinite(want).all()
        run = Forward(file, backend=CpuBackend(threads=2))
        got = run.logits(TOKENS)
        # Some element of a key may still be rounded the other way: 2^-11 of it.
        assert np.abs(got - want).max() < 2.0**-11 * np.abs(want).max()
        assert run.logits(TOKENS, [7, 1, 16]).tobytes() == got.tobytes()
        kinds = [op.kind for s in run.model.segments for op in s.program.ops]
        assert "experts" in kinds


def test_what_a_file_says_of_its_experts_counts(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"expert_used_count": 2},
        {"expert_gating_func": 1},
        {"expert_weights_norm": False},
        {"expert_weights_scale": 0.0},
        {"expert_group_count": 4, "expert_group_used_count": 2},
    ]
    found = []
    for change in changes:
        with open_model(write(tmp_path / "m.gguf", "dots1", **change)) as file:
            found.append(Forward(file).logits(TOKENS))
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-3
