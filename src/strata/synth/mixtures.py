"""Published mixtures of experts, as their GGUF files describe them.

Sizes are those of the models' config.json files, keys those that llama.cpp's converter writes.
Blocks that predict further tokens are left out.
"""

from __future__ import annotations

from typing import Any

from strata.synth.shape import ATTENTION_BIASES, CONV_BIAS, Shape, ssm_keys

_SELECTION = "blk.{i}.exp_probs_b.bias"
_SOFTMAX, _SIGMOID = 1, 2


def _gpt_oss(size: str, layers: int, experts: int) -> Shape:
    parts = ("gate_inp", "gate_exps", "up_exps", "down_exps")
    return Shape(
        *(f"gpt-oss-{size}", "gpt-oss", layers, 2880, 2880, 64, 8, 64, 201088, 131072, 150000.0),
        window=128,
        experts=experts,
        top_k=4,
        keys={
            "expert_feed_forward_length": 2880,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
        holds=(
            *ATTENTION_BIASES,
            "blk.{i}.attn_output.bias",
            *(f"blk.{{i}}.ffn_{part}.bias" for part in parts),
        ),
    )


def _deepseek(
    name: str,
    sizes: tuple[int, int, int, int, int],
    *,
    experts: int,
    top_k: int,
    mscale: float,
    holds: tuple[str, ...] = (),
    **keys: Any,
) -> Shape:
    """``sizes``: layers, width, ffn, heads, vocab; the halves of what makes keys and values are
    apart, so that what is kept is the latent vector."""
    layers, width, ffn, heads, vocab = sizes
    return Shape(
        *(name, "deepseek2", layers, width, ffn, heads, 1, 576, vocab, 163840, 10000.0),
        eps=1e-6,
        experts=experts,
        top_k=top_k,
        keys={
            "attention.kv_lora_rank": 512,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 40.0,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_log_multiplier": 0.1 * mscale,
            **{key.replace("__", "."): value for key, value in keys.items()},
        },
        holds=("blk.{i}.attn_k_b.weight", "blk.{i}.attn_v_b.weight", *holds),
    )


def _some_attend(layers: int, kv_heads: int, attending: tuple[int, ...]) -> dict[str, Any]:
    return {"attention.head_count_kv": [kv_heads if i in attending else 0 for i in range(layers)]}


MIXTURES: tuple[Shape, ...] = (
    _gpt_oss("20b", 24, 32),
    _gpt_oss("120b", 36, 128),
    _deepseek(
        *("deepseek-v2-lite", (27, 2048, 10944, 16, 102400)),
        experts=64,
        top_k=6,
        mscale=0.707,
        leading_dense_block_count=1,
        expert_feed_forward_length=1408,
        expert_shared_count=2,
        expert_gating_func=_SOFTMAX,
        expert_weights_scale=1.0,
    ),
    _deepseek(
        *("deepseek-v3", (61, 7168, 18432, 128, 129280)),
        experts=256,
        top_k=8,
        mscale=1.0,
        holds=(_SELECTION,),
        attention__q_lora_rank=1536,
        leading_dense_block_count=3,
        expert_feed_forward_length=2048,
        expert_shared_count=1,
        expert_gating_func=_SIGMOID,
        expert_weights_norm=True,
        expert_weights_scale=2.5,
        expert_group_count=8,
        expert_group_used_count=4,
    ),
    Shape(
        *("glm-4.5-air", "glm4moe", 46, 4096, 10944, 96, 8, 128, 151552, 131072, 1e6),
        experts=128,
        top_k=8,
        keys={
            "rope.dimension_count": 64,
            "leading_dense_block_count": 1,
            "expert_feed_forward_length": 1408,
            "expert_shared_count": 1,
            "expert_gating_func": _SIGMOID,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
        },
        holds=(*ATTENTION_BIASES, _SELECTION),
    ),
    Shape(
        *("qwen3.6-35b-a3b", "qwen35moe", 40, 2048, 0, 16, 2, 256, 248320, 262144, 1e7),
        eps=1e-6,
        experts=256,
        top_k=8,
        keys={
            **ssm_keys(4096, 32),
            "ssm.group_count": 16,
            "rope.dimension_count": 64,
            "rope.dimension_sections": [11, 11, 10, 0],
            "full_attention_interval": 4,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
        },
        holds=("blk.{i}.ffn_gate_inp_shexp.weight",),
    ),
    Shape(
        *("lfm2-8b-a1b", "lfm2moe", 24, 2048, 7168, 32, 8, 64, 65536, 128000, 1e6),
        tied=True,
        experts=32,
        top_k=4,
        keys={
            **_some_attend(24, 8, (2, 6, 10, 14, 18, 21)),
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 2,
            "expert_feed_forward_length": 1792,
            "expert_gating_func": _SIGMOID,
        },
        holds=(_SELECTION,),
    ),
    Shape(
        *("granite-4-h-tiny", "granitehybrid", 40, 1536, 512, 12, 4, 128, 100352, 131072, 10000.0),
        tied=True,
        experts=64,
        top_k=6,
        keys={
            **_some_attend(40, 4, (5, 15, 25, 35)),
            **ssm_keys(3072, 48),
            "expert_shared_feed_forward_length": 1024,
            "embedding_scale": 12.0,
            "attention.scale": 1 / 128,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            "rope.scaling.finetuned": False,
        },
        holds=(CONV_BIAS,),
    ),
    Shape(
        *("gemma-4-26b-a4b", "gemma4", 30, 2816, 2112, 16, 8, 512, 262144, 262144, 1e6),
        tied=True,
        eps=1e-6,
        window=1024,
        experts=128,
        top_k=8,
        keys={
            # Every sixth layer sees all keys, with fewer and wider heads; keys are values there.
            "attention.sliding_window_pattern": [i % 6 != 5 for i in range(30)],
            "attention.head_count_kv": [8 if i % 6 != 5 else 2 for i in range(30)],
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.shared_kv_layers": 0,
            "rope.dimension_count_swa": 256,
            "rope.freq_base_swa": 10000.0,
            "embedding_length_per_layer_input": 0,
            "expert_feed_forward_length": 704,
            "final_logit_softcapping": 30.0,
        },
        holds=(
            "blk.{i}.ffn_gate_inp.weight",
            "blk.{i}.ffn_down_exps.scale",
            "blk.{i}.layer_output_scale.weight",
            "rope_freqs.weight",
            *(f"blk.{i}.attn_v.weight" for i in range(30) if i % 6 != 5),
        ),
    ),
)
