"""Families whose checkpoints transformers renames when it reads them: directories with the names
that they are published with, against transformers.

Prefill at once, in pieces and step by step, in float32. Needs torch and transformers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from support.forward import logits
from support.native_agreement import check_native
from support.random_weights import fill
from support.streaming import forward, least_ring, units
from support.streaming import settings as streaming

pytestmark = pytest.mark.slow

VOCABULARY = 272
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LATENT = {
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}
ROUTED = {"num_experts_per_tok": 3, "moe_intermediate_size": 40}
KINDS = ["linear_attention", "full_attention", "linear_attention"]
KIMI: dict[str, Any] = {
    **{**SIZES, **LATENT, **ROUTED, "q_lora_rank": None, "num_experts_per_token": 3},
    **{"num_experts": 6, "n_group": 1, "num_shared_experts": 1, "layer_types": KINDS},
    **{"linear_head_dim": 16, "linear_num_heads": 4},
}
LING: dict[str, Any] = {
    **{**SIZES, **LATENT, **ROUTED, "num_experts": 8, "n_group": 2, "topk_group": 1},
    **{
        "q_lora_rank": None,
        "head_dim": 16,
        "first_k_dense_replace": 1,
        "layer_group_size": 2,
        "n_shared_experts": 1,
    },
}
MIMO: dict[str, Any] = {
    **{**SIZES, **ROUTED, "num_key_value_heads": 1, "n_routed_experts": 6},
    **{"head_dim": 24, "v_head_dim": 16, "sliding_window": 9},
}
HY4: dict[str, Any] = {
    **{**SIZES, **LATENT, **ROUTED, "n_routed_experts": 6, "n_shared_experts": 1},
    **{"index_topk": 64, "index_head_dim": 32, "index_n_heads": 2, "swiglu_limit": 0.5},
}
AXK1 = {
    **{**SIZES, **LATENT, **ROUTED, "n_routed_experts": 8, "n_shared_experts": 2},
    **{"n_group": 2, "topk_group": 1},
}
HRM: dict[str, Any] = {
    **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    **{"head_dim": 16, "num_hidden_layers": 2, "H_cycles": 2, "L_cycles": 2},
}
DBRX: dict[str, Any] = {
    **{"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": VOCABULARY},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 50000.0},
    "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 6, "moe_top_k": 3},
}
OLMO: dict[str, Any] = {
    **{**SIZES, "num_key_value_heads": 2, "layer_types": KINDS, "linear_num_key_heads": 2},
    **{"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
}
FLINT: dict[str, Any] = {
    **{**SIZES, **ROUTED, "num_key_value_heads": 2, "num_experts": 6, "head_dim": 16},
    **{"sliding_window": 9, "shared_expert_intermediate_size": 56, "mlp_only_layers": [0]},
}
LOCAL = ["indexed_attention", "sliding_attention", "sliding_attention"]
NARROW: dict[str, Any] = {
    **{"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 40},
    **{"swa_kv_lora_rank": 24, "swa_head_dim": 32, "swa_qk_nope_head_dim": 24},
    "swa_v_head_dim": 16,
}
# Fewer keys than the text has; no key weighs exactly nothing for so many heads.
CHOSEN = {"index_topk": 12, "index_head_dim": 24, "index_n_heads": 24}
DOTS: dict[str, Any] = {
    **{**SIZES, **LATENT, **ROUTED, **NARROW, "n_routed_experts": 6, "n_shared_experts": 2},
    **{"index_topk": 64, "index_head_dim": 32, "index_n_heads": 2, "sliding_window": 9},
    **{"layer_types": LOCAL, "shared_experts_intermediate_size": 24},
}
M3: dict[str, Any] = {
    **{**SIZES, **ROUTED, "num_key_value_heads": 2, "num_local_experts": 6, "head_dim": 24},
    **{"rotary_dim": 12, "intermediate_size": 40, "dense_intermediate_size": 96},
    "rope_parameters": {"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.5},
    **{"shared_intermediate_size": 56, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    **{"index_n_heads": 2, "index_head_dim": 16, "index_block_size": 16, "index_topk_blocks": 4},
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
}
# What transformers writes otherwise than it is published.
NAMES = {
    "KimiLinear": [(r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj")],
    "MiniMaxM3VL": [
        (r"mlp\.(experts|shared_experts|gate\.weight)", r"block_sparse_moe.\1"),
        (r"mlp\.gate\.e_score", "block_sparse_moe.e_score"),
        (r"indexer\.([qk])_", r"index_\1_"),
        (r"^", "language_model."),
    ],
    "OlmoHybrid": [(r"(layers\.1\.)feedforward_layer_norm", r"\1post_attention_layernorm")],
    "HYV4": [
        (r"\.hc_pre\.(hc_\w+_layer|hc_head)\.", r".\1.hc_pre."),
        (r"(mlp\.|shared_experts\.)linear_gate", r"\1gate_proj"),
    ],
}
SPARSE = {
    "index_n_heads": "sparse_num_index_heads",
    "index_head_dim": "sparse_index_dim",
    "index_block_size": "sparse_block_size",
    "index_topk_blocks": "sparse_topk_blocks",
    "index_local_blocks": "sparse_local_block",
}
# The words of config.json as it is published, for those that transformers writes.
STATED: dict[str, dict[str, Any]] = {
    "KimiLinear": {
        **dict.fromkeys(
            ("layer_types", "linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim")
        ),
        **{"mlp_layer_types": None, "first_k_dense_replace": 1, "mla_use_nope": True},
        "linear_attn_config": {
            **{"full_attn_layers": [2], "kda_layers": [1, 3], "head_dim": 16, "num_heads": 4},
            "short_conv_kernel_size": 4,
        },
    },
    "BailingHybrid": {
        **dict.fromkeys(("layer_types", "linear_head_dim", "linear_num_heads")),
        **{"linear_conv_kernel_dim": None, "mlp_layer_types": None, "rope_parameters": None},
    },
    "MiMoV2Flash": {
        **{"layer_types": None, "mlp_layer_types": None, "rope_parameters": None},
        **{"hybrid_layer_pattern": [0, 1, 1], "moe_layer_freq": [0, 1, 1]},
        **{"rope_theta": 5e6, "swa_rope_theta": 1e4, "partial_rotary_factor": 0.334},
        **{"swa_num_key_value_heads": 2, "swa_head_dim": 24, "swa_v_head_dim": 16},
        **{"sliding_window_size": 8, "routed_scaling_factor": None},
    },
    "Dots3Note": {
        **{"per_layer_config": None, "rope_parameters": None, "mlp_layer_types": None, **NARROW},
        **{"rope_theta": 8e7, "swa_rope_theta": 5e4, "moe_layer_freq": [0, 1, 1]},
        **{"moe_shared_expert_intermediate_size": 24, "sliding_window_size": 9},
        **{"sliding_window": None, "layer_types": ["full_attention", *LOCAL[1:]]},
    },
    "MiniMaxM3VL": {
        **{"layer_types": None, "mlp_layer_types": None, "moe_layer_freq": [0, 1, 1]},
        "sparse_attention_config": {"sparse_attention_freq": [0, 1, 1]},
    },
    "HrmText": {"num_layers_per_stack": None, "num_hidden_layers": 2, "embedding_scale": None},
}
# What transformers says of these is read in the words of their publishers alone.
FOREIGN = ("Dots3Note", "MiniMaxM3VL")
FAMILIES = [
    ("KimiLinear", KIMI),
    ("BailingHybrid", LING),
    ("MiMoV2Flash", MIMO),
    ("HYV4", HY4),
    ("HYV4", {**HY4, **CHOSEN, "indexer_types": ["full", "shared", "full"]}),
    ("AXK1", AXK1),
    ("HrmText", HRM),
    ("Dbrx", DBRX),
    ("OlmoHybrid", OLMO),
    ("Flint", FLINT),
    ("Dots3Note", DOTS),
    ("Dots3Note", {**DOTS, **CHOSEN}),
    ("MiniMaxM3VL", M3),
    ("MiniMaxM3VL", {**M3, "index_block_size": 8, "index_topk_blocks": 3}),
    ("MiniMaxM3VL", {**M3, "index_block_size": 5, "index_local_blocks": 2}),
    ("OlmoHybrid", {**OLMO, "linear_allow_neg_eigval": False, "rope_parameters": None}),
]


def write(model: Any, kind: str, directory: Path) -> None:
    """A directory with the names that such models are published with."""
    written = pytest.importorskip("safetensors.torch")
    model.save_pretrained(directory)
    path = directory / "model.safetensors"
    tensors = written.load_file(path)
    if kind == "OlmoHybrid":
        # What it cuts into thirds is as wide as q, k and v.
        for name in [name for name in tensors if ".q_conv1d." in name]:
            parts = [name.replace(".q_", f".{part}_") for part in "qkv"]
            widths = [len(tensors[p.replace("conv1d", "proj")]) for p in parts]
            whole = pytest.importorskip("torch").cat([tensors[p] for p in parts])
            tensors |= {p: t.clone() for p, t in zip(parts, whole.split(widths), strict=True)}
    if kind == "MiniMaxM3VL":
        tensors = apart(tensors)
    for pattern, name in NAMES.get(kind, []):
        tensors = {re.sub(pattern, name, key): value for key, value in tensors.items()}
    written.save_file(tensors, path, metadata={"format": "pt"})


def apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """Gates and ups by themselves, and so each expert."""
    found: dict[str, Any] = {}
    for key, value in tensors.items():
        names = ("gate_proj", "up_proj") if "gate_up_proj" in key else ("",)
        for name, part in zip(
            names, value.chunk(len(names), dim=max(-2, -value.ndim)), strict=True
        ):
            at = key.replace("gate_up_proj", name)
            if ".experts." not in key:
                found[at] = part.clone()
                continue
            theirs = {"gate_proj": "w1", "up_proj": "w3", "": "w2"}[name]
            for expert, matrix in enumerate(part):
                found[f"{at.rsplit('.', 1)[0]}.{expert}.{theirs}.weight"] = matrix.clone()
    return found


def state(directory: Path, kind: str) -> None:
    """config.json in the words that it is published in."""
    path = directory / "config.json"
    written = json.loads(path.read_text())
    stated = {**written, **STATED[kind]}
    for key, name in SPARSE.items() if kind == "MiniMaxM3VL" else ():
        stated["sparse_attention_config"][name] = written[key]
        stated[key] = None
    stated = {key: value for key, value in stated.items() if value is not None}
    if kind == "MiniMaxM3VL":
        stated = {
            "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
            **{"text_config": stated, "vision_config": {}},
        }
    path.write_text(json.dumps(stated))


@pytest.mark.parametrize(("kind", "settings"), FAMILIES, ids=[kind for kind, _ in FAMILIES])
def test_logits_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    made = getattr(transformers, f"{kind}TextConfig", None)
    config = (made or getattr(transformers, f"{kind}Config"))(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    with torch.no_grad():
        fill(model)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_().mul_(0.1)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    write(model, kind, tmp_path)
    if kind in FOREIGN:
        state(tmp_path, kind)
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [23, 1, 36], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
        check_native(file, tokens.tolist())
        native = forward(file, None).logits(tokens.tolist())
        for tile in (4096, 40000):
            # Experts that are tensors of their own have to fit.
            apart = any(".experts.0." in name for name in file.tensors)
            names = [u for u in units(file) if not (apart and ".experts" in u)]
            how = streaming(names, tile=tile, ring=1 << 20 if apart else least_ring(file, tile))
            assert forward(file, how).logits(tokens.tolist()).tobytes() == native.tobytes()
    if kind in STATED and kind not in FOREIGN:
        state(tmp_path, kind)
        with open_model(tmp_path) as file:
            again = logits(file, tokens.tolist(), chunks=[1] * len(tokens))
        np.testing.assert_array_equal(again, found)
