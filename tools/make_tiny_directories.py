"""Tiny Hugging Face directories of families that only rows of tables build: what config.json says
of them, the tensors that their family looks for, and random weights.

Without transformers, for tests of headers and for attacks on files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from strata.formats.header_only import Blank
from strata.models import wanted_tensors

_SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_OLD = {
    "vocab_size": 272,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "layer_norm_epsilon": 1e-5,
    "n_positions": 256,
}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
}
_MAMBA = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
_DELTA = {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "shared_expert_intermediate_size": 32,
}
_HYBRID = {
    "hybrid_override_pattern": "ME*E",
    "num_hidden_layers": 4,
    "layer_norm_epsilon": 1e-5,
    "head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "moe_latent_size": 32,
    "moe_shared_expert_intermediate_size": 32,
}

_KDA = {"linear_head_dim": 16, "linear_num_heads": 4, "linear_conv_kernel_dim": 4}
_KINDS = ["linear_attention", "full_attention"]

# By `architectures`, without its end.
_INDEX: dict[str, Any] = {"index_topk": 24, "index_n_heads": 16, "index_head_dim": 32}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "Afmoe": {
        **_SIZES,
        **_FEW,
        "head_dim": 16,
        "num_dense_layers": 1,
        "num_shared_experts": 1,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "AXK1": {**_SIZES, **_LATENT, **_ROUTED},
    "BailingHybrid": {
        **{**_SIZES, **_LATENT, **_ROUTED, "q_lora_rank": None, "short_conv_kernel_size": 4},
        **{"head_dim": 16, "layer_group_size": 2, "kda_safe_gate": True, "kda_lower_bound": -5.0},
    },
    "BitNet": {**_SIZES, "hidden_act": "relu2"},
    "Bloom": {**_OLD, "apply_residual_connection_post_layernorm": False},
    "Dbrx": {
        **{"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 272},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 50000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "DeepseekV2": {**_SIZES, **_LATENT, **_ROUTED, "topk_method": "greedy"},
    "DeepseekV3": {**_SIZES, **_LATENT, **_ROUTED},
    "DeepseekV32": {**_SIZES, **_LATENT, **_ROUTED, **_INDEX},
    "Dots3Note": {
        **{**_SIZES, **_LATENT, **_ROUTED, **_INDEX, "sliding_window_size": 16},
        **{"layer_types": ["indexed_attention", "sliding_attention"], "moe_layer_freq": [0, 1]},
        **{"swa_num_attention_heads": 2, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 16},
        **{"swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16},
        "moe_shared_expert_intermediate_size": 32,
    },
    "Dots1": {**_SIZES, **_ROUTED, "head_dim": 16},
    "Ernie4_5_Moe": {
        **_SIZES,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "moe_layer_end_index": 1,
    },
    "ExaoneMoe": {
        **_SIZES,
        **_FEW,
        "num_shared_experts": 1,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Apertus": {**_SIZES, "hidden_act": "xielu"},
    "Bamba": {**_SIZES, **_MAMBA, "attn_layer_indices": [1]},
    "CodeGen": {**_OLD, "rotary_dim": 8},
    "Cohere2Moe": {
        **{**_SIZES, **_FEW, "head_dim": 16, "sliding_window": 16, "num_shared_experts": 1},
        "mlp_layer_types": ["dense", "sparse"],
        "prefix_dense_intermediate_size": 80,
        "expert_selection_fn": "sigmoid",
    },
    "Falcon": {**_OLD, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "FalconMamba": {
        **{"vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16},
        **{"conv_kernel": 4, "time_step_rank": 8, "mixer_rms_eps": 1e-6},
    },
    "GPTNeo": {
        **{"vocab_size": 272, "hidden_size": 64, "num_layers": 2, "num_heads": 4},
        **{"max_position_embeddings": 256, "window_size": 8, "layer_norm_epsilon": 1e-5},
        "attention_layers": ["global", "local"],
        "attention_types": [[["global", "local"], 1]],
    },
    "GraniteSWA": {**_SIZES, "layer_rope_theta": [0, 10000.0], "rope_theta": 10000.0},
    "GraniteMoeSWA": {
        **{**_SIZES, **_LOCAL, "sliding_window": 16, "shared_intermediate_size": 32},
        **{"layer_rope_theta": [0, 10000.0], "rope_theta": 10000.0},
    },
    "Laguna": {
        **{**_SIZES, **_FEW, "head_dim": 16, "sliding_window": 16, "gating": True},
        "layer_types": ["full_attention", "sliding_attention"],
        "num_attention_heads_per_layer": [4, 6],
        "mlp_layer_types": ["dense", "sparse"],
        "moe_router_logit_softcapping": 0.0,
    },
    "Persimmon": {**_SIZES, "num_key_value_heads": 4, "layer_norm_eps": 1e-5},
    "FalconH1": {**_SIZES, **_MAMBA, "ssm_multipliers": [0.5] * 5, "key_multiplier": 0.5},
    "FlexOlmo": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "Flint": {
        **{**_SIZES, **_FEW, "head_dim": 16, "shared_expert_intermediate_size": 32},
        **{"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16},
        "mlp_only_layers": [0],
    },
    "GPTBigCode": {**_OLD, "multi_query": True, "n_inner": 96},
    "GPTJ": {**_OLD, "rotary_dim": 8},
    "GPTNeoX": {**_SIZES, "num_key_value_heads": None, "rotary_pct": 0.25},
    "Gemma": {**_SIZES, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh"},
    "Glm4Moe": {**_SIZES, **_ROUTED, "head_dim": 16, "use_qk_norm": True},
    "Glm4MoeLite": {**_SIZES, **_LATENT, **_ROUTED, "mlp_layer_types": ["dense", "sparse"]},
    "GlmMoeDsa": {**_SIZES, **_LATENT, **_ROUTED, **_INDEX},
    "GptOss": {
        **_SIZES,
        **_LOCAL,
        "intermediate_size": 32,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GraniteMoe": {**_SIZES, **_LOCAL, **_GRANITE},
    "GraniteMoeHybrid": {
        **_SIZES,
        **_LOCAL,
        **_GRANITE,
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "GraniteMoeShared": {**_SIZES, **_LOCAL, **_GRANITE, "shared_intermediate_size": 32},
    "HYV4": {
        **{**_SIZES, **_LATENT, **_ROUTED, **_INDEX, "swiglu_limit": 0.5},
        **{"hc_mult": 4, "hc_eps": 1e-6, "hc_magnitude": 2.0},
    },
    "HrmText": {
        **{**_SIZES, "num_key_value_heads": None, "head_dim": 16, "num_hidden_layers": 12},
        **{"num_layers_per_stack": 2, "H_cycles": 2, "L_cycles": 2, "initializer_range": 0.02},
    },
    "HYV3": {**_SIZES, **_FEW, "head_dim": 16, "router_scaling_factor": 1.5},
    "HunYuanMoEV1": {**_SIZES, "num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "HyperCLOVAX": {**_SIZES, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "Jamba": {
        **_SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
    },
    "KimiLinear": {
        **{**_SIZES, **_LATENT, **_FEW, **_KDA, "q_lora_rank": None, "layer_types": _KINDS},
        **{"num_shared_experts": 1, "moe_renormalize": True, "mla_use_nope": True},
        "linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1]},
    },
    "Lfm2Moe": {
        **_SIZES,
        **_FEW,
        "num_dense_layers": 1,
        "norm_topk_prob": True,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"],
    },
    "MiniCPM3": {**_SIZES, **_LATENT, "scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 32},
    "Mellum": {
        **{**_SIZES, **_FEW, "head_dim": 16, "sliding_window": 16},
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "MiMoV2Flash": {
        **{**_SIZES, **_ROUTED, "head_dim": 24, "v_head_dim": 16, "num_key_value_heads": 1},
        **{"hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "sliding_window_size": 8},
        **{"swa_num_key_value_heads": 2, "partial_rotary_factor": 0.334, "swa_head_dim": 24},
    },
    "MiniMaxM2": {**_SIZES, **_LOCAL, "head_dim": 24, "rotary_dim": 12},
    "MiniMaxM3VL": {
        **{**_SIZES, **_LOCAL, "intermediate_size": 32, "head_dim": 24, "rotary_dim": 12},
        **{"dense_intermediate_size": 96, "shared_intermediate_size": 32},
        **{"moe_layer_freq": [0, 1], "swiglu_limit": 7.0, "swiglu_alpha": 1.702},
        "sparse_attention_config": {
            **{"sparse_num_index_heads": 2, "sparse_index_dim": 16, "sparse_block_size": 8},
            **{"sparse_topk_blocks": 3, "sparse_attention_freq": [0, 1]},
        },
    },
    "Ministral3": {**_SIZES, "head_dim": 16, "rope_parameters": _YARN},
    "Mistral4": {**_SIZES, **_LATENT, **_ROUTED, "rope_parameters": _YARN},
    "Mixtral": {**_SIZES, **_LOCAL},
    "Mpt": {
        "vocab_size": 272,
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 6},
    },
    "NemotronH": {**_SIZES, **_ROUTED, **_HYBRID},
    "OlmoHybrid": {
        **{**_SIZES, **_DELTA, "head_dim": None, "linear_allow_neg_eigval": True},
        "layer_types": _KINDS,
    },
    "Olmoe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "Phimoe": {**_SIZES, **_LOCAL, "attention_bias": True, "lm_head_bias": True},
    "Qwen2Moe": {**_SIZES, **_FEW, "shared_expert_intermediate_size": 32, "norm_topk_prob": True},
    "Qwen3Moe": {**_SIZES, **_FEW, "head_dim": 24, "norm_topk_prob": True},
    "Qwen3Next": {**_SIZES, **_FEW, **_DELTA, "norm_topk_prob": True},
    "SolarOpen": {**_SIZES, **_ROUTED, "first_k_dense_replace": 0, "head_dim": 16},
}


def config(name: str) -> dict[str, Any]:
    """What config.json says of a family."""
    return {"architectures": [f"{name}ForCausalLM"], **CONFIGS[name]}


def shapes(stated: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors, rows first, that the family of a config.json looks for. Raises a ModelError."""
    wanted = wanted_tensors(Blank("huggingface", Path("tiny"), stated, {}))
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in wanted.tensors.items():
        shape, stored, part = tensor.shape, tensor.huggingface, tensor.part
        if tensor.optional and name.endswith("bias"):
            continue
        if tensor.transform == "transpose":
            shape = (*shape[:-2], *shape[:-3:-1])
        if not stored and part is not None:
            stored = part.huggingface
            shape = (part.total,) if len(shape) == 1 else (*shape[:-2], part.total, shape[-1])
        each = range(shape[0]) if stored and "{e}" in stored else (0,)
        for i in range(wanted.layers) if stored and "{i}" in stored else (0,):
            for e in each:
                if stored:
                    at = stored.replace("{p}", wanted.prefix).replace("{i}", str(i))
                    found[at.replace("{e}", str(e))] = shape[1:] if "{e}" in stored else shape
    return found


def write(path: Path, name: str) -> Path:
    """A directory of a family with random weights, and no tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    stated, rng = config(name), np.random.default_rng(1)
    (path / "config.json").write_text(json.dumps(stated))
    weights = {key: rng.standard_normal(s, np.float32) for key, s in shapes(stated).items()}
    if name == "GptOss":
        weights = _as_gpt_oss(weights)
    if name == "Dbrx":  # all experts of a layer in one matrix
        weights = {
            key: a.reshape(-1, a.shape[-1]) if a.ndim == 3 else a for key, a in weights.items()
        }
    save_file(weights, path / "model.safetensors")
    return path


def _as_gpt_oss(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Gates and ups of all experts in one tensor, row by row in turn, and matrices transposed."""
    out = {key: a for key, a in weights.items() if ".mlp.experts." not in key}
    for key, gate in weights.items():
        if ".mlp.experts.gate_proj" in key:
            up = weights[key.replace("gate_proj", "up_proj")]
            both = np.stack((gate, up), axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])
            out[key.replace("gate_proj", "gate_up_proj")] = np.ascontiguousarray(
                both.transpose(0, 2, 1) if both.ndim == 3 else both
            )
        if ".mlp.experts.down_proj" in key:
            down = weights[key]
            out[key] = np.ascontiguousarray(down.transpose(0, 2, 1) if down.ndim == 3 else down)
    return out
