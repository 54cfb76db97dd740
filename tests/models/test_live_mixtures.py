"""Mixtures of experts in Hugging Face directories against transformers, which wrote them.

Prefill at once and step by step, in float32. Needs torch and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from support.forward import logits
from support.native_agreement import check_native
from support.quantised import check_quantised
from support.random_weights import fill

pytestmark = pytest.mark.slow

VOCABULARY = 272
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
QWEN3 = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 24}
# Latent attention: some layers before the experts, shared ones beside them.
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
LLAMA4 = {**YARN, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16}
LATENT = {
    name: DEEPSEEK[name]
    for name in (
        *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("num_key_value_heads", "rms_norm_eps"),
    )
}
INDEX = {"index_topk": 64, "index_head_dim": 32, "index_n_heads": 2}
# Fewer keys than the text has; no key weighs exactly nothing for so many heads.
CHOSEN = {"index_topk": 12, "index_head_dim": 24, "index_n_heads": 24, "n_group": 1}
SHARED = {**CHOSEN, "topk_group": 1, "num_hidden_layers": 4}
KINDS = ["sparse", "dense"]
LOCAL = {"num_local_experts": 6, "num_experts_per_tok": 3}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
WINDOWS = ["sliding_attention", "full_attention"]
DEEPSEEK_LIKE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}
SOLAR = {name: n for name, n in DEEPSEEK_LIKE.items() if name != "first_k_dense_replace"}
ERNIE = {
    "moe_num_experts": 6,
    "moe_k": 3,
    "moe_intermediate_size": 40,
    "moe_num_shared_experts": 2,
}
HUNYUAN = {"num_experts": 6, "moe_topk": 3, "head_dim": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0}
# transformers divides by PhiMoE's short factors whatever the length, which its first publication
# does not: here both are the same.
_FACTORS = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 7.0, 9.0]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
    "short_mscale": 1.1,
    "long_mscale": 1.25,
}
EXAONE = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
}
GPT_OSS = {
    **LOCAL,
    "head_dim": 16,
    "sliding_window": 16,
    "layer_types": WINDOWS,
}
BASES: dict[str, Any] = {
    "full_attention": {**YARN, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
COHERE: dict[str, Any] = {
    **{"num_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "sliding_window": 16},
    "layer_types": WINDOWS,
}
PREFIX: dict[str, Any] = {
    "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["full_attention"] * 2,
    "prefix_dense_intermediate_size": 80,
    **{"num_shared_experts": 1, "shared_expert_combination_strategy": "sum"},
}
PARTIAL = {**BASES["full_attention"], "partial_rotary_factor": 0.5}
LAGUNA: dict[str, Any] = {
    **{"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 16},
    **{"sliding_window": 16, "layer_types": WINDOWS[::-1], "moe_routed_scaling_factor": 1.5},
    **{"shared_expert_intermediate_size": 48, "num_attention_heads_per_layer": [4, 6]},
    "rope_parameters": {
        "full_attention": PARTIAL,
        "sliding_attention": {**BASES["sliding_attention"], "partial_rotary_factor": 1.0},
    },
}
MIXTURES: list[tuple[str, dict[str, Any]]] = [
    ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Qwen3Moe", {**QWEN3, "norm_topk_prob": True}),
    ("Qwen3Moe", {**QWEN3, "norm_topk_prob": False}),
    ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 0.5}),
    ("Qwen2Moe", {**QWEN3, "shared_expert_intermediate_size": 56}),
    ("GraniteMoe", {**LOCAL, **GRANITE}),
    ("GraniteMoeShared", {**LOCAL, **GRANITE, "shared_intermediate_size": 56}),
    (
        "GraniteMoeSWA",
        {
            **LOCAL,
            **GRANITE,
            "sliding_window": 16,
            "layer_types": WINDOWS,
            "layer_rope_theta": [1e4, 0],
        },
    ),
    ("Mellum", {**QWEN3, "sliding_window": 16, "layer_types": WINDOWS, "rope_parameters": BASES}),
    ("Cohere2Moe", COHERE),
    ("Cohere2Moe", {**COHERE, "expert_selection_fn": "sigmoid", "num_shared_experts": 2}),
    ("Cohere2Moe", {**COHERE, **PREFIX, "rms_norm_eps": 1e-6}),
    ("Laguna", LAGUNA),
    ("Laguna", {**LAGUNA, "gating": "per-element", "attention_bias": True}),
    ("FlexOlmo", {"num_experts": 6, "num_experts_per_tok": 3}),
    ("GptOss", {**GPT_OSS}),
    ("GptOss", {**GPT_OSS, "rope_parameters": YARN, "attention_bias": False}),
    ("Glm4Moe", {**DEEPSEEK_LIKE, "use_qk_norm": True, "attention_bias": True}),
    ("Glm4Moe", {**DEEPSEEK_LIKE, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1}),
    ("Dots1", {**DEEPSEEK_LIKE, "norm_topk_prob": True}),
    ("Dots1", {**DEEPSEEK_LIKE, "sliding_window": 16, "layer_types": WINDOWS}),
    ("MiniMaxM2", {**LOCAL, "head_dim": 24, "rotary_dim": 12}),
    ("Ernie4_5_Moe", {**ERNIE, "moe_layer_start_index": 1}),
    ("Ernie4_5_Moe", {**ERNIE, "moe_layer_interval": 2, "moe_layer_start_index": 0}),
    ("Ernie4_5_Moe", {**ERNIE, "moe_layer_end_index": 0, "moe_layer_start_index": 0}),
    ("HunYuanMoEV1", HUNYUAN),
    ("HunYuanMoEV1", {**HUNYUAN, "rope_parameters": {**DYNAMIC, "alpha": 50.0}}),
    ("Phimoe", {"num_local_experts": 6, "attention_bias": True, "lm_head_bias": True}),
    ("Phimoe", {"num_local_experts": 6, "router_jitter_noise": 0.4}),
    ("Phimoe", {"num_local_experts": 6, "rope_parameters": LONG}),
    ("SolarOpen", {**SOLAR, "head_dim": 16}),
    ("HYV3", {**QWEN3, "num_shared_experts": 2, "router_scaling_factor": 1.5}),
    ("Glm4MoeLite", {**DEEPSEEK, "routed_scaling_factor": 1.5}),
    ("Glm4MoeLite", {**DEEPSEEK, "rope_interleave": False, "mlp_layer_types": KINDS}),
    ("DeepseekV32", {**DEEPSEEK, "n_group": 4, "topk_group": 2, **INDEX}),
    ("GlmMoeDsa", {**DEEPSEEK, "n_group": 1, "topk_group": 1, **INDEX}),
    ("DeepseekV32", {**DEEPSEEK, **CHOSEN, "topk_group": 1}),
    ("GlmMoeDsa", {**DEEPSEEK, **CHOSEN, "topk_group": 1}),
    ("GlmMoeDsa", {**DEEPSEEK, **SHARED, "index_topk_freq": 2}),
    ("GlmMoeDsa", {**DEEPSEEK, **SHARED, "index_topk_pattern": "FSFS"}),
    ("GlmMoeDsa", {**DEEPSEEK, **SHARED, "indexer_types": ["full", "shared", "shared", "full"]}),
    ("Mistral4", {**DEEPSEEK, "n_group": 1, "topk_group": 1, "rope_parameters": LLAMA4}),
    ("Youtu", LATENT),
    ("MiniCPM3", {**LATENT, "scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 32}),
    ("ExaoneMoe", {**EXAONE, "sliding_window": 16, "layer_types": WINDOWS}),
    ("DeepseekV3", {**DEEPSEEK, "n_group": 4, "topk_group": 2}),
    ("DeepseekV3", {**DEEPSEEK, "n_group": 1, "topk_group": 1, "rope_parameters": YARN}),
    ("DeepseekV2", {**DEEPSEEK, "n_group": 1, "topk_group": 1, "topk_method": "greedy"}),
    ("DeepseekV2", {**DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy"}),
]


# Of which a GGUF file is made; other families, and settings that it has no key for, are refused.
WRITTEN = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe")
NO_KEY = ({"norm_topk_prob": False}, {"clip_qkv": 0.5})


@pytest.mark.parametrize(("kind", "settings"), MIXTURES)
def test_logits_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    with torch.no_grad():
        fill(model)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    with open_model(tmp_path) as file:
        file.repack(tmp_path / "repacked")
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        check_native(file, tokens.tolist())
    assert check_quantised(tmp_path, tokens.tolist()) == (
        kind in WRITTEN and not any(odd.items() <= settings.items() for odd in NO_KEY)
    )


@pytest.mark.parametrize("chosen", [3, 6])
def test_gpt_oss_in_mxfp4_as_published(chosen: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    written = pytest.importorskip("safetensors.torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(1)
    config = transformers.GptOssConfig(**{**SIZES, **GPT_OSS, "num_experts_per_tok": chosen})
    model = transformers.GptOssForCausalLM(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    model.save_pretrained(tmp_path)
    stored = dict(model.state_dict())
    with torch.no_grad():
        for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
            count, k, n = stored.pop(name).shape
            blocks = torch.randint(0, 256, (count, n, k // 32, 16), dtype=torch.uint8)
            scales = torch.randint(120, 125, (count, n, k // 32), dtype=torch.uint8)
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            made = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            model.get_parameter(name).copy_(made)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    whole = {key: value.contiguous() for key, value in stored.items()}
    written.save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((tmp_path / "config.json").read_text())
    stated["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with open_model(tmp_path) as file:
        gate = file.tensors["model.layers.0.mlp.experts.gate_proj"]
        assert (gate.type.name, gate.shape) == ("MXFP4", (6, 96, 64))
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        file.repack(tmp_path / "repacked")
        # Native products round what they read to int8, by 1 / 254 of a block's largest each time;
        # another expert may be chosen by that: numbers can be compared where all are.
        check_native(file, tokens.tolist(), near=2.0**-5 if chosen == 6 else None)
