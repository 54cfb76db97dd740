"""Families whose attention or layers are special, in Hugging Face directories, against
transformers, which wrote them.

Prefill at once and step by step, in float32. Needs torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import open_model
from support.forward import Forward, logits
from support.random_weights import fill
from support.streaming import forward, least_ring, units
from support.streaming import settings as streaming

pytestmark = pytest.mark.slow

VOCABULARY, TOKENS = 272, 264
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LOCAL, FULL = "sliding_attention", "full_attention"
GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": [LOCAL, FULL, LOCAL, LOCAL, FULL],
    "vocab_size_per_layer_input": VOCABULARY,
    "final_logit_softcapping": 5.0,
}
GEMMA3N: dict[str, Any] = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": [LOCAL, LOCAL, FULL, LOCAL, FULL],
    # Tokens beyond this table are of pictures and sounds.
    "vocab_size_per_layer_input": TOKENS,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "laurel_rank": 12,
    "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.0, 0.0],
    "final_logit_softcapping": 5.0,
}
FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "Llama4",
        "Llama4Text",
        {
            "head_dim": 16,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
            "floor_scale": 16,
        },
    ),
    (
        "Llama4",
        "Llama4Text",
        {
            "head_dim": 16,
            "intermediate_size": 32,
            "intermediate_size_mlp": 32,
            "num_local_experts": 4,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 0, 1, 1, 0],
        },
    ),
    (
        "Afmoe",
        "Afmoe",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "moe_intermediate_size": 32,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.5,
            "mup_enabled": True,
        },
    ),
    ("Gemma3n", "Gemma3nText", GEMMA3N),
    (
        "Gemma4",
        "Gemma4Text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    (
        "Gemma4Unified",
        "Gemma4UnifiedText",
        {
            **{key: n for key, n in GEMMA4.items() if key != "vocab_size_per_layer_input"},
            **{"num_kv_shared_layers": 2, "attention_k_eq_v": True},
            "num_global_key_value_heads": 1,
        },
    ),
    (
        "Gemma4",
        "Gemma4Text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 3,
            "moe_intermediate_size": 32,
        },
    ),
]


@pytest.mark.parametrize(("kind", "config", "settings"), FAMILIES)
def test_logits_are_those_of_transformers(
    kind: str, config: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    stated = getattr(transformers, f"{config}Config")(**{**SIZES, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(stated).float().eval()
    tokens = np.random.default_rng(1).integers(0, TOKENS, 60)
    with torch.no_grad():
        fill(model)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.7)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=0, atol=2e-4)
        # With keys and values rounded alike; streamed, every tensor is read where it lies.
        rounded = Forward(file, backend=ReferenceBackend(KV_TYPES[0])).logits(tokens.tolist())
        native = forward(file, None).logits(tokens.tolist())
        assert np.abs(native - rounded).max() < 2.0**-8 * np.abs(rounded).max()
        for tile in (4096, 40000):
            # Experts that are tensors of their own have to fit.
            apart = any(".experts.0." in name for name in file.tensors)
            names = [u for u in units(file) if not (apart and ".experts" in u)]
            how = streaming(names, tile=tile, ring=1 << 20 if apart else least_ring(file, tile))
            assert forward(file, how).logits(tokens.tolist()).tobytes() == native.tobytes()
