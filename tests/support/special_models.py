"""Tiny GGUF files of the families whose attention or layers are special: what each must hold, as
llama.cpp's loader of it asks for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.quant import by_name
from support.headers import Header

WIDTH, HEADS, KV_HEADS, DIM, FFN, EXPERTS, OWN, VOCABULARY = 64, 4, 2, 16, 96, 8, 32, 96

Shapes = dict[str, tuple[int, ...]]


def attention(heads: int = HEADS, kv_heads: int = KV_HEADS, k: int = DIM, v: int = DIM) -> Shapes:
    """The norm before attention and its products."""
    return {
        "attn_norm": (WIDTH,),
        "attn_q": (heads * k, WIDTH),
        "attn_k": (kv_heads * k, WIDTH),
        "attn_v": (kv_heads * v, WIDTH),
        "attn_output": (WIDTH, heads * v),
    }


def latent(rank: int, nope: int, value: int, pe: int = 16, q_rank: int = 40) -> Shapes:
    """The same of latent attention."""
    return {
        "attn_norm": (WIDTH,),
        "attn_q_a": (q_rank, WIDTH),
        "attn_q_a_norm": (q_rank,),
        "attn_q_b": (HEADS * (nope + pe), q_rank),
        "attn_kv_a_mqa": (rank + pe, WIDTH),
        "attn_kv_a_norm": (rank,),
        "attn_k_b": (HEADS, rank, nope),
        "attn_v_b": (HEADS, value, rank),
        "attn_output": (WIDTH, HEADS * value),
    }


NORMS: Shapes = {"attn_q_norm": (DIM,), "attn_k_norm": (DIM,)}
PLAIN: Shapes = {
    "ffn_gate": (FFN, WIDTH),
    "ffn_up": (FFN, WIDTH),
    "ffn_down": (WIDTH, FFN),
}
DENSE: Shapes = {"ffn_norm": (WIDTH,), **PLAIN}
ROUTED: Shapes = {
    "ffn_norm": (WIDTH,),
    "ffn_gate_inp": (EXPERTS, WIDTH),
    "ffn_gate_exps": (EXPERTS, OWN, WIDTH),
    "ffn_up_exps": (EXPERTS, OWN, WIDTH),
    "ffn_down_exps": (EXPERTS, WIDTH, OWN),
}
BIASED: Shapes = {**ROUTED, "exp_probs_b.bias": (EXPERTS,)}
SHARED: Shapes = {
    "ffn_gate_shexp": (OWN, WIDTH),
    "ffn_up_shexp": (OWN, WIDTH),
    "ffn_down_shexp": (WIDTH, OWN),
}
BOTH: Shapes = {**BIASED, **SHARED}
AROUND: Shapes = {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
GATE: Shapes = {"attn_gate": (HEADS * DIM, WIDTH)}
SINKS: Shapes = {"attn_sinks": (HEADS,)}
BLOCKS: Shapes = {
    "indexer.q_proj": (2 * 24, WIDTH),
    "indexer.k_proj": (24, WIDTH),
    "indexer.q_norm": (24,),
    "indexer.k_norm": (24,),
}
CHOOSING: Shapes = {
    "indexer.attn_q_b": (16 * 24, 40),
    "indexer.attn_k": (24, WIDTH),
    "indexer.k_norm": (24,),
    "indexer.k_norm.bias": (24,),
    "indexer.proj": (16, WIDTH),
}
FURTHER: Shapes = {"nextn.eh_proj": (WIDTH, 2 * WIDTH)}
STREAMS: Shapes = {
    **{f"hc_{half}_fn": (6, 3 * WIDTH) for half in ("attn", "ffn")},
    **{f"hc_{half}_base": (6,) for half in ("attn", "ffn")},
    **{f"hc_{half}_scale": (2,) for half in ("attn", "ffn")},
}
WIDE: Shapes = {"ffn_norm": (WIDTH,), "ffn_gate": (2 * FFN, WIDTH), "ffn_up": (2 * FFN, WIDTH)} | {
    "ffn_down": (WIDTH, 2 * FFN)
}
WIDE_NORMS: Shapes = {"attn_q_norm": (32,), "attn_k_norm": (32,)}
PER_LAYER: Shapes = {"inp_gate": (8, WIDTH), "proj": (WIDTH, 8), "post_norm": (WIDTH,)} | {
    "layer_output_scale": (1,)
}
PER_LAYER3: Shapes = {k: v for k, v in PER_LAYER.items() if k != "layer_output_scale"}
ALTUP: Shapes = {
    "altup_correct_coef": (3, 3),
    "altup_correct_scale": (WIDTH,),
    "altup_predict_coef": (9, 3),
    "altup_router": (3, WIDTH),
    "altup_router_norm": (WIDTH,),
    "laurel_l": (64, WIDTH),
    "laurel_r": (WIDTH, 64),
    "laurel_post_norm": (WIDTH,),
}
GEMMA4_LOCAL: Shapes = {**attention(), **NORMS, **AROUND}
BESIDE: Shapes = {
    "ffn_gate_inp": (EXPERTS, WIDTH),
    "ffn_gate_inp.scale": (WIDTH,),
    "ffn_gate_up_exps": (EXPERTS, 2 * OWN, WIDTH),
    "ffn_down_exps": (EXPERTS, WIDTH, OWN),
    "ffn_down_exps.scale": (EXPERTS,),
    **{f"{name}_{n}": (WIDTH,) for name, n in (("pre_ffw_norm", 2), ("post_ffw_norm", 1))},
    "post_ffw_norm_2": (WIDTH,),
}


def without_kv(layer: Shapes) -> Shapes:
    """A layer that reads what another one keeps."""
    return {k: v for k, v in layer.items() if k not in ("attn_k", "attn_v", "attn_k_norm")}


GEMMA4: dict[str, Any] = {
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": DIM,
    "attention.value_length_swa": DIM,
    "attention.sliding_window": 8,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": DIM,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 500.0,
}
KEYS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": WIDTH,
    "feed_forward_length": FFN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_count": EXPERTS,
    "expert_used_count": 3,
    "expert_feed_forward_length": OWN,
}
CHOSEN: dict[str, Any] = {
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
}
LATENT: dict[str, Any] = {
    **CHOSEN,
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 40,
    "attention.kv_lora_rank": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 48,
    "attention.key_length": 80,
    "attention.value_length": 64,
    "rope.dimension_count": 16,
    "attention.indexer.top_k": 128,
}
INDEXED: dict[str, Any] = {
    **LATENT,
    "attention.indexer.top_k": 12,
    "attention.indexer.head_count": 16,
    "attention.indexer.key_length": 24,
}

SPECIAL: dict[str, tuple[dict[str, Any], list[Shapes]]] = {
    "llama4": (
        {"interleave_moe_layer_step": 2},
        2 * [{**attention(), **DENSE}, {**attention(), **ROUTED, **SHARED}],
    ),
    "mimo2": (
        {
            "attention.head_count_kv": [2, 1, 1, 2],
            "attention.key_length": 24,
            "attention.value_length": 16,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [False, True, True, False],
            "attention.value_scale": 0.7,
            "rope.freq_base_swa": 500.0,
            "nextn_predict_layers": 1,
        },
        [
            {**attention(4, 2, 24), **DENSE},
            {**attention(4, 1, 24), **SINKS, **BIASED},
            {**attention(4, 1, 24), **SINKS, **BIASED},
            FURTHER,
        ],
    ),
    "afmoe": (
        {**CHOSEN, "attention.sliding_window": 8, "rope.freq_base_swa": 500.0},
        [{**attention(), **NORMS, **GATE, **AROUND, **(BOTH if i else DENSE)} for i in range(4)],
    ),
    "hy_v3": (
        {**CHOSEN, "expert_shared_feed_forward_length": OWN, "nextn_predict_layers": 1},
        [{**attention(), **NORMS, **DENSE}, {**attention(), **NORMS, **BOTH}, FURTHER],
    ),
    "minimax-m3": (
        {
            **CHOSEN,
            "rope.dimension_count": 8,
            "attention.indexer.top_k": 3,
            "attention.indexer.block_size": 4,
            "attention.indexer.local_blocks": 1,
            "attention.indexer.head_count": 2,
            "attention.indexer.key_length": 24,
        },
        [{**attention(), **NORMS, **DENSE}, {**attention(), **NORMS, **BLOCKS, **BOTH}],
    ),
    "laguna": (
        {
            **CHOSEN,
            "attention.head_count": [4, 6, 6, 6, 4],
            "attention.key_length": DIM,
            "attention.value_length": DIM,
            "attention.sliding_window": 8,
            "rope.dimension_count": 8,
            "rope.dimension_count_swa": DIM,
        },
        [
            {**attention(4), **NORMS, "attn_gate": (4, WIDTH), **DENSE},
            {**attention(6), **NORMS, "attn_gate": (6, WIDTH), **BOTH},
            {**attention(6), **NORMS, "attn_gate": (6 * DIM, WIDTH), **BOTH},
            {**attention(6), **NORMS, "attn_gate": (6, WIDTH), **BOTH},
            {**attention(4), **NORMS, "attn_gate": (4 * DIM, WIDTH), **BOTH},
        ],
    ),
    "maple": (
        {
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [False, True],
            "swiglu_clamp_exp": [0.0, 0.5],
        },
        2 * [{**attention(), **NORMS, **ROUTED}],
    ),
    "dots3note": (
        {
            **INDEXED,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [False, True],
            "attention.kv_lora_rank_swa": 32,
            "attention.key_length_mla_swa": 80,
            "attention.value_length_mla_swa": 32,
            "rope.freq_base_swa": 500.0,
        },
        [
            {**latent(64, 32, 48), "attn_k_norm": (16,), "attn_gate": (4, WIDTH), **CHOOSING}
            | DENSE,
            {**latent(32, 64, 32), "attn_k_norm": (16,), "attn_gate": (4, WIDTH), **BOTH},
        ],
    ),
    "deepseek32": (
        INDEXED,
        [{**latent(64, 32, 48), **CHOOSING, **each} for each in (DENSE, BOTH)],
    ),
    "glm-dsa": (
        {**INDEXED, "attention.indexer.types": [1, 0, 1]},
        [
            {**latent(64, 32, 48), **each}
            for each in ({**CHOOSING, **DENSE}, BOTH, {**CHOOSING, **BOTH})
        ],
    ),
    "hy_v4": (
        {
            **INDEXED,
            "attention.indexer.types": [1, 0],
            "hyper_connection.count": 3,
            "hyper_connection.epsilon": 1e-3,
            "hyper_connection.magnitude": 2.0,
            "swiglu_clamp_exp": 0.5,
        },
        [
            {**latent(64, 32, 48), **SINKS, **STREAMS, "attn_gate": (HEADS * 48, WIDTH), **each}
            for each in ({**DENSE, **CHOOSING}, BOTH)
        ],
    ),
    "hrm_text": (
        {
            "block_count": 12,
            "expert_count": 0,
            "hrm.layers_per_stack": 2,
            "hrm.h_cycles": 2,
            "hrm.l_cycles": 2,
            "embedding_scale": 3.0,
        },
        4 * [{k: v for k, v in {**attention(), **GATE, **PLAIN}.items() if k != "attn_norm"}],
    ),
    "gemma3n": (
        {
            "attention.key_length": DIM,
            "attention.value_length": DIM,
            "attention.sliding_window": 8,
            "attention.sliding_window_pattern": [True, True, False, True, False],
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 8,
            "altup.num_inputs": 3,
            "altup.active_idx": 1,
            "activation_sparsity_scale": [1.0, 0.5, -np.inf, -np.inf, -np.inf],
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 500.0,
            "expert_count": 0,
            "expert_used_count": 0,
        },
        3 * [{**GEMMA4_LOCAL, **DENSE, **PER_LAYER3, **ALTUP}]
        + 2 * [{**without_kv(GEMMA4_LOCAL), **DENSE, **PER_LAYER3, **ALTUP}],
    ),
    "gemma4": (
        {
            **GEMMA4,
            "attention.head_count_kv": [2, 2, 1, 2, 1],
            "attention.sliding_window_pattern": [True, True, False, True, False],
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 8,
            "feed_forward_length": [FFN, FFN, FFN, 2 * FFN, 2 * FFN],
            "final_logit_softcapping": 3.0,
            "expert_count": 0,
            "expert_used_count": 0,
        },
        [
            {**GEMMA4_LOCAL, **DENSE, **PER_LAYER},
            {**GEMMA4_LOCAL, **DENSE, **PER_LAYER},
            {**attention(4, 1, 32, 32), **WIDE_NORMS, **AROUND, **DENSE, **PER_LAYER},
            {**without_kv(GEMMA4_LOCAL), **WIDE, **PER_LAYER},
            {**without_kv(attention(4, 1, 32, 32)), "attn_q_norm": (32,)}
            | {**AROUND, **WIDE, **PER_LAYER},
        ],
    ),
    "gemma4 experts": (
        {
            **GEMMA4,
            "attention.head_count_kv": [2, 1, 2],
            "attention.sliding_window_pattern": [True, False, True],
            "embedding_length_per_layer_input": 0,
        },
        [
            {**GEMMA4_LOCAL, **DENSE, **BESIDE},
            {
                **{k: v for k, v in attention(4, 1, 32, 32).items() if k != "attn_v"},
                **{**WIDE_NORMS, **AROUND, **DENSE, **BESIDE},
            },
            {**GEMMA4_LOCAL, **DENSE},
        ],
    ),
}

# Tensors that belong to no layer.
OF_MODEL: dict[str, Shapes] = {
    "hrm_text": {"hrm.z_l_init": (WIDTH,)},
    "hy_v4": {"output_hc_fn.weight": (3, 3 * WIDTH), "output_hc_base.weight": (3,)}
    | {"output_hc_scale.weight": (1,)},
    "gemma4": {"rope_freqs.weight": (16,), "per_layer_token_embd.weight": (VOCABULARY, 40)}
    | {"per_layer_model_proj.weight": (40, WIDTH), "per_layer_proj_norm.weight": (8,)},
    "gemma4 experts": {"rope_freqs.weight": (16,)},
    "gemma3n": {
        "altup_proj.weight": (2, WIDTH, WIDTH),
        "altup_unembd_proj.weight": (2, WIDTH, WIDTH),
        "per_layer_token_embd.weight": (VOCABULARY, 40),
        "per_layer_model_proj.weight": (40, WIDTH),
        "per_layer_proj_norm.weight": (8,),
    },
}


def keys(architecture: str, **more: Any) -> dict[str, Any]:
    """The metadata of a file; ``more`` comes in the place of what it has."""
    own, layers = SPECIAL[architecture]
    stated = {"block_count": len(layers), **KEYS, **own, **more}
    name = architecture.split()[0]
    named = {f"{name}.{key}": value for key, value in stated.items() if value is not None}
    return {"general.architecture": name, **named}


def shapes(architecture: str) -> Shapes:
    """Every tensor of a file."""
    out: Shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH)}
    if architecture != "hrm_text":
        out["output_norm.weight"] = (WIDTH,)
    out |= OF_MODEL.get(architecture, {})
    for i, layer in enumerate(SPECIAL[architecture][1]):
        for name, shape in layer.items():
            whole = name.endswith(("bias", ".scale"))
            out[f"blk.{i}.{name}" + ("" if whole else ".weight")] = shape
    return out


def header(architecture: str, **more: Any) -> Any:
    """A file without its bytes."""
    return Header("gguf", keys(architecture, **more), shapes(architecture))


def write(path: Path, architecture: str, **more: Any) -> Path:
    """A file of random weights."""
    sources = []
    for seed, (name, shape) in enumerate(shapes(architecture).items()):
        drawn = np.random.default_rng(seed).standard_normal(shape)
        drawn *= 0.2 if len(shape) == 1 else shape[-1] ** -0.5
        drawn += len(shape) == 1 and name.endswith(("weight", ".scale"))
        raw = drawn.astype(np.float32).reshape(-1).view(np.uint8)
        sources.append(TensorSource(name, shape, by_name("F32"), partial(_one, raw)))
    write_gguf(path, keys(architecture, **more), sources)
    return path


def _one(raw: Any) -> list[Any]:
    return [raw]
