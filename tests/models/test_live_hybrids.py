"""Hybrids in Hugging Face directories against transformers, which wrote them.

Prefill at once, in pieces and step by step, in float32. Needs torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from strata.quantizer.directories import as_gguf
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
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
DELTA = {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "full_attention_interval": 2,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 48,
}
LFM2 = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
}
MAMBA = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
GRANITE = {
    **MAMBA,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "layer_types": ["mamba", "attention", "mamba", "attention"],
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
}
JAMBA = {
    **MAMBA,
    "mamba_dt_rank": 8,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts_per_tok": 2,
    "use_mamba_kernels": False,
}
FALCON = {
    **MAMBA,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "lm_head_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "mlp_multipliers": [0.7, 1.5],
    "key_multiplier": 0.6,
    "attention_out_multiplier": 0.8,
    "attention_in_multiplier": 1.2,
    "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.9,
}
BAMBA = {
    **MAMBA,
    **{"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2, "attn_layer_indices": [1, 3]},
}
FALCON_MAMBA: dict[str, Any] = {
    **{"state_size": 16, "conv_kernel": 4, "time_step_rank": 8},
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size"), ...),
}
NEMOTRON: dict[str, Any] = {
    "layers_block_type": ["mamba", "moe", "attention", "moe"],
    "head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "use_mamba_kernels": False,
    "num_hidden_layers": ...,
}
HYBRIDS: list[tuple[str, dict[str, Any]]] = [
    ("Qwen3Next", {**DELTA, **EXPERTS, "norm_topk_prob": True}),
    ("Qwen3_5Moe", {**DELTA, **EXPERTS, "intermediate_size": ...}),
    ("Lfm2Moe", {**LFM2, "num_dense_layers": 1}),
    ("GraniteMoeHybrid", {**GRANITE, "shared_intermediate_size": 56}),
    ("Jamba", {**JAMBA, "num_experts": 4, "expert_layer_period": 2, "expert_layer_offset": 1}),
    ("Bamba", BAMBA),
    ("FalconMamba", FALCON_MAMBA),
    ("FalconH1", FALCON),
    ("FalconH1", {**FALCON, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    ("NemotronH", NEMOTRON),
    ("NemotronH", {**NEMOTRON, "moe_latent_size": 32}),
    (
        "MiniMax",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 16,
            **{f"{part}_alpha_factor": 1.5 for part in ("full_attn", "linear_attn", "mlp")},
            "linear_attn_beta_factor": 0.5,
            "mlp_beta_factor": 0.75,
        },
    ),
]


def made(transformers: Any, kind: str, settings: dict[str, Any]) -> Any:
    """transformers' model of these sizes; ... leaves one out."""
    config = getattr(transformers, f"{kind}TextConfig", None)
    config = config or getattr(transformers, f"{kind}Config")
    named = {**SIZES, **settings}
    sizes = config(**{key: value for key, value in named.items() if value is not ...})
    return getattr(transformers, f"{kind}ForCausalLM")(sizes).float().eval()


@pytest.mark.parametrize(("kind", "settings"), HYBRIDS, ids=[kind for kind, _ in HYBRIDS])
def test_logits_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = made(transformers, kind, settings)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    with torch.no_grad():
        fill(model)
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.normal_()
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [23, 1, 36], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            # Steps of one token are within 1e-4; transformers' chunks go through inverse matrices.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
        check_native(file, tokens.tolist())
        if kind == "Jamba":  # the GGUF file that it would be has experts in one tensor
            found = logits(as_gguf(file, vocabulary=False), tokens.tolist())
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert check_quantised(tmp_path, tokens.tolist()) == (kind == "Jamba")


def test_experts_in_one_tensor_are_those_apart(tmp_path: Path) -> None:
    """As the checkpoints that people download have them."""
    transformers = pytest.importorskip("transformers")
    written = pytest.importorskip("safetensors.torch")
    kind, settings = next(row for row in HYBRIDS if row[0] == "Qwen3_5Moe")
    model = made(transformers, kind, settings)
    model.save_pretrained(tmp_path)
    tokens = list(range(20))
    with open_model(tmp_path) as file:
        apart = logits(file, tokens)
    whole = {key: value.contiguous() for key, value in model.state_dict().items()}
    assert any(key.endswith("experts.down_proj") for key in whole)
    written.save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_model(tmp_path) as file:
        assert np.array_equal(logits(file, tokens), apart)
