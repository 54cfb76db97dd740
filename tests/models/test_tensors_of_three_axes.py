"""A tensor of three axes is refused by name before anything is read: it is never taken for a list
of floats, nor passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import make_tiny_models
from strata.formats import TensorInfo, open_model
from strata.llm import LLM
from strata.models import TensorAxes, TensorShape, build_model
from strata.quant import by_name
from support.headers import gguf, huggingface

# As llama.cpp and transformers name experts that are stored together, and a short convolution.
GGUF_EXPERTS = "blk.0.ffn_gate_exps.weight"
STORED_EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
CONVOLUTION = "blk.0.shortconv.conv.weight"


def check(path: Path, name: str, shape: str) -> None:
    says = rf"tensor '{name}' of shape {shape} has 3 axes: .*; use a model whose weights are"
    with open_model(path) as file, pytest.raises(TensorAxes, match=says):
        build_model(file)
    with pytest.raises(TensorAxes, match=says):
        LLM(path, threads=1)


@pytest.mark.parametrize("name", [GGUF_EXPERTS, CONVOLUTION])
def test_gguf(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = make_tiny_models.golden("llama")
    arrays = make_tiny_models.gguf_arrays(golden)
    gate = arrays.pop("blk.0.ffn_gate.weight")
    arrays[name] = np.stack([gate] * 3)
    monkeypatch.setattr(make_tiny_models, "gguf_arrays", lambda _: arrays)
    n, k = gate.shape
    path = make_tiny_models.write_gguf(tmp_path / "m.gguf", golden)
    check(path, name, rf"\[3, {n}, {k}\]")


def test_huggingface_directory(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    path = make_tiny_models.write_directory(tmp_path, golden)
    arrays = dict(golden.weights())
    gate = arrays.pop("model.layers.0.mlp.gate_proj.weight")
    arrays[STORED_EXPERTS] = np.stack([gate] * 3)
    save_file(arrays, path / "model.safetensors")
    n, k = gate.shape
    check(path, STORED_EXPERTS, rf"\[3, {n}, {k}\]")


@pytest.mark.parametrize("make", [gguf, huggingface])
def test_a_weight_that_is_needed_with_an_axis_more(make: Any) -> None:
    header = make("llama")
    for name, info in dict(header.tensors).items():
        shape = (1, *info.shape) if len(info.shape) == 2 else (1, 1, *info.shape)
        header.tensors[name] = TensorInfo(name, shape, info.type, info.path, 0, info.nbytes)
        with pytest.raises((TensorAxes, TensorShape), match=f"'{name}' of shape"):
            build_model(header)
        header.tensors[name] = info


def test_what_a_family_does_not_use_may_have_any_axes() -> None:
    header = huggingface("gpt2")
    f32 = by_name("F32")
    mask = TensorInfo("h.0.attn.bias", (1, 1, 8, 8), f32, Path("x"), 0, 256)
    header.tensors[mask.name] = mask
    assert build_model(header).segments == build_model(huggingface("gpt2")).segments
