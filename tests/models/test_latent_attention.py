"""Latent attention from GGUF files of random weights: absorbed into the query and the outcome it is
what keys and values of every head give, and it keeps what it says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.models import build_model, trained_context
from strata.models.errors import ConfigError
from strata.program import PagedKV
from strata.quant import by_name
from support.forward import Forward

HEADS, RANK, NOPE, ROPE, VALUE, WIDTH, FFN, EXPERTS = 4, 64, 32, 16, 48, 64, 32, 6
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 96, 70)]
KEYS = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": 96,
    "attention.head_count": HEADS,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.kv_lora_rank": RANK,
    "attention.q_lora_rank": 40,
    "attention.key_length_mla": NOPE + ROPE,
    "attention.value_length_mla": VALUE,
    "attention.key_length": RANK + ROPE,
    "attention.value_length": RANK,
    "rope.dimension_count": ROPE,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": FFN,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
}


def weights(*, absorbed: bool) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a file; what makes keys and values is the same in both forms."""
    rng = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def norm(width: int) -> np.ndarray[Any, Any]:
        return (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)

    out = {"token_embd": drawn(96, WIDTH), "output": drawn(96, WIDTH), "output_norm": norm(WIDTH)}
    for i in range(2):
        kv = drawn(HEADS, NOPE + VALUE, RANK)
        layer = {
            "attn_norm": norm(WIDTH),
            "ffn_norm": norm(WIDTH),
            "attn_q_a": drawn(40, WIDTH),
            "attn_q_a_norm": norm(40),
            "attn_q_b": 3 * drawn(HEADS * (NOPE + ROPE), 40),
            "attn_kv_a_mqa": 3 * drawn(RANK + ROPE, WIDTH),
            "attn_kv_a_norm": norm(RANK),
            "attn_output": drawn(WIDTH, HEADS * VALUE),
        }
        if i == 0:
            layer |= {"ffn_gate": drawn(96, WIDTH), "ffn_up": drawn(96, WIDTH)}
            layer |= {"ffn_down": drawn(WIDTH, 96)}
        else:
            layer["ffn_gate_inp"] = drawn(EXPERTS, WIDTH)
            for name, shape in (
                ("gate", (FFN, WIDTH)),
                ("up", (FFN, WIDTH)),
                ("down", (WIDTH, FFN)),
            ):
                layer[f"ffn_{name}_exps"] = drawn(EXPERTS, *shape)
                layer[f"ffn_{name}_shexp"] = drawn(*shape)
        if absorbed:
            layer["attn_k_b"] = np.ascontiguousarray(kv[:, :NOPE].transpose(0, 2, 1))
            layer["attn_v_b"] = np.ascontiguousarray(kv[:, NOPE:])
        else:
            layer["attn_kv_b"] = kv.reshape(-1, RANK)
        out |= {f"blk.{i}.{name}": array for name, array in layer.items()}
    return out


def write(
    path: Path, *, absorbed: bool = True, architecture: str = "deepseek2", **more: Any
) -> Path:
    keys = {f"{architecture}.{key}": value for key, value in {**KEYS, **more}.items()}
    sources = [
        TensorSource(f"{name}.weight", a.shape, by_name("F32"), partial(_one, a))
        for name, a in weights(absorbed=absorbed).items()
    ]
    write_gguf(path, {"general.architecture": architecture, **keys}, sources)
    return path


def _one(array: np.ndarray[Any, Any]) -> list[Any]:
    return [array.reshape(-1).view(np.uint8)]


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


def test_positions_that_an_indexer_would_choose_among_are_not_offered(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture="deepseek32", **{"attention.indexer.top_k": 40})
    with open_model(path) as file:
        assert trained_context(file) == 40
        assert build_model(file).context_length == 40


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
