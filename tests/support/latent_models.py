"""Tiny GGUF files with latent attention and experts, absorbed into the query or for every head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.quant import by_name

HEADS, RANK, NOPE, ROPE, VALUE, WIDTH, FFN, EXPERTS = 4, 64, 32, 16, 48, 64, 32, 6
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
