"""Dense families in Hugging Face directories against transformers, which wrote them.

Prefill at once and step by step, in float32, and as the GGUF file that is made of the directory.
Needs torch and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
from strata.formats import open_model
from strata.quantizer.directories import as_gguf
from support.forward import logits
from support.native_agreement import check_native
from support.quantised import check_quantised
from support.random_weights import fill

pytestmark = pytest.mark.slow

VOCABULARY = make_tiny_models.VOCABULARY
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
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
LLAMA4 = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
}
# What families do not state themselves.
SAME: dict[str, Any] = {"num_key_value_heads": ...}
OLD: dict[str, Any] = {**SAME, "intermediate_size": ...}
GROUPED = {**OLD, "new_decoder_architecture": True, "num_kv_heads": 2}
MPT = {**OLD, "d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 4}
NEO = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), ...),
    **{"num_layers": 4, "num_heads": 4, "window_size": 8},
}
WINDOWS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
DENSE: list[tuple[str, dict[str, Any]]] = [
    ("Apertus", {"hidden_act": "xielu"}),
    ("Arcee", {}),
    ("Arcee", {"mlp_bias": True, "attention_bias": True}),
    ("BitNet", {"hidden_act": "relu2"}),
    ("Bloom", OLD),
    ("Bloom", {**OLD, "n_head": 6, "hidden_size": 48, "num_attention_heads": ...}),
    ("CodeGen", {**OLD, "rotary_dim": 8}),
    ("Cohere", {}),
    ("Cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    ("Cohere2", {"sliding_window": 8, "layer_types": WINDOWS}),
    ("Cwm", {"sliding_window": 8, "head_dim": 16, "bos_token_id": 2}),
    ("Ernie4_5", {"head_dim": 24}),
    ("Ernie4_5", {"head_dim": 16, "use_bias": True}),
    ("Exaone4", {"sliding_window": 8, "layer_types": WINDOWS}),
    ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    ("Falcon", {**OLD, "bias": True}),
    ("Falcon", {**OLD, "multi_query": False}),
    ("Falcon", GROUPED),
    ("Falcon", {**GROUPED, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 80}),
    ("GPTBigCode", {"activation_function": "gelu_pytorch_tanh", "n_inner": 96}),
    ("GPTJ", {**OLD, "rotary_dim": 8}),
    ("GPTNeo", {**NEO, "attention_types": [[["global", "local"], 2]]}),
    ("GPTNeo", {**NEO, "attention_types": [[["local"], 4]], "intermediate_size": ...}),
    ("GPTNeoX", {**SAME, "rope_parameters": PARTIAL}),
    ("GPTNeoX", {**SAME, "use_parallel_residual": False, "attention_bias": False}),
    ("GPTNeoX", {**SAME, "hidden_act": "gelu_new"}),
    ("Gemma", {"head_dim": 24, "hidden_act": "gelu_pytorch_tanh"}),
    ("Glm", {"head_dim": 16, "attention_bias": True, "rope_parameters": PARTIAL}),
    ("Glm4", {"head_dim": 16, "attention_bias": True, "rope_parameters": PARTIAL}),
    ("Glm4", {"head_dim": 24, "attention_bias": False}),
    ("GraniteSWA", {"sliding_window": 8, "layer_types": WINDOWS, "attention_multiplier": 0.2}),
    ("GraniteSWA", {"sliding_window": 8, "layer_rope_theta": [0, 10000.0, 0, 10000.0]}),
    ("Helium", {"head_dim": 16}),
    ("HunYuanDenseV1", {"head_dim": 16, "rope_parameters": DYNAMIC}),
    ("HyperCLOVAX", {"attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    ("HyperCLOVAX", {"logits_scaling": 0.5, "embedding_multiplier": 3.0}),
    ("Jais2", {}),
    ("Jais2", {"mlp_bias": False, "attention_bias": False}),
    ("Ministral", {"sliding_window": 8, "head_dim": 16}),
    ("Ministral", {"sliding_window": 8, "layer_types": WINDOWS, "head_dim": 16}),
    ("Ministral3", {"head_dim": 24, "rope_parameters": LLAMA4, "sliding_window": None}),
    ("Mpt", {**MPT, "d_model": 64, "n_heads": 4}),
    ("Mpt", {**MPT, "attn_config": {"clip_qkv": 0.5}}),
    ("NanoChat", {}),
    ("Nemotron", {"rope_parameters": PARTIAL, "hidden_act": "relu2"}),
    ("Nemotron", {"mlp_bias": True, "attention_bias": True}),
    ("Olmo", {}),
    ("Olmo", {"clip_qkv": 0.5}),
    ("Persimmon", SAME),
    ("Persimmon", {**SAME, "qk_layernorm": False}),
    ("Phi", {"rope_parameters": PARTIAL}),
    ("SeedOss", {"head_dim": 24}),
    ("SeedOss", {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}),
    ("SmolLM3", {"no_rope_layer_interval": 2}),
    ("SmolLM3", {}),
    ("StableLm", {"rope_parameters": PARTIAL}),
    ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    ("Starcoder2", {"sliding_window": 8}),
    ("Starcoder2", {"sliding_window": None, "use_bias": False}),
    ("VaultGemma", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
]


# Of which no GGUF file is made: there is none, or it has no place for these settings.
UNCONVERTED = (
    *(("Ernie4_5", "use_bias"), ("Exaone4", "sliding_window"), ("Glm", "")),
    *(("HunYuanDenseV1", ""), ("SeedOss", "")),
    *(("SmolLM3", "no_rope_layer_interval"), ("Starcoder2", "sliding_window")),
    *((kind, "") for kind in ("BitNet", "Bloom", "Cwm", "Falcon", "GPTBigCode", "GPTJ", "GPTNeoX")),
    *((kind, "") for kind in ("Gemma", "Helium", "HyperCLOVAX", "Jais2", "Mpt")),
    *((kind, "") for kind in ("Apertus", "CodeGen", "GPTNeo", "GraniteSWA", "Ministral")),
    *((kind, "") for kind in ("Ministral3", "NanoChat", "Persimmon", "VaultGemma")),
)


def converted(kind: str, settings: dict[str, Any]) -> bool:
    return not any(
        kind == name and (not setting or settings.get(setting)) for name, setting in UNCONVERTED
    )


@pytest.mark.parametrize(("kind", "settings"), DENSE)
def test_logits_are_those_of_transformers(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    named = {key: value for key, value in {**SIZES, **settings}.items() if value is not ...}
    config = getattr(transformers, f"{kind}Config")(**named)
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    with torch.no_grad():
        fill(model)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(make_tiny_models._tokenizer()))
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        check_native(file, tokens.tolist())
        if converted(kind, settings):
            found = logits(as_gguf(file), tokens.tolist())
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert check_quantised(tmp_path, tokens.tolist()) == converted(kind, settings)
