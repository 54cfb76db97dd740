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
WINDOWS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
DENSE: list[tuple[str, dict[str, Any]]] = [
    ("Arcee", {}),
    ("Arcee", {"mlp_bias": True, "attention_bias": True}),
    ("Cohere", {}),
    ("Cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    ("Cohere2", {"sliding_window": 8, "layer_types": WINDOWS}),
    ("Ernie4_5", {"head_dim": 24}),
    ("Ernie4_5", {"head_dim": 16, "use_bias": True}),
    ("Exaone4", {"sliding_window": 8, "layer_types": WINDOWS}),
    ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    ("Glm", {"head_dim": 16, "attention_bias": True, "rope_parameters": PARTIAL}),
    ("Glm4", {"head_dim": 16, "attention_bias": True, "rope_parameters": PARTIAL}),
    ("Glm4", {"head_dim": 24, "attention_bias": False}),
    ("HunYuanDenseV1", {"head_dim": 16, "rope_parameters": DYNAMIC}),
    ("Nemotron", {"rope_parameters": PARTIAL, "hidden_act": "relu2"}),
    ("Nemotron", {"mlp_bias": True, "attention_bias": True}),
    ("Olmo", {}),
    ("Olmo", {"clip_qkv": 0.5}),
    ("Phi", {"rope_parameters": PARTIAL}),
    ("SeedOss", {"head_dim": 24}),
    ("SeedOss", {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True}),
    ("SmolLM3", {"no_rope_layer_interval": 2}),
    ("SmolLM3", {}),
    ("StableLm", {"rope_parameters": PARTIAL}),
    ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    ("Starcoder2", {"sliding_window": 8}),
    ("Starcoder2", {"sliding_window": None, "use_bias": False}),
]


# Of which no GGUF file is made: there is none, or it has no place for these settings.
UNCONVERTED = (
    *(("Ernie4_5", "use_bias"), ("Exaone4", "sliding_window"), ("Glm", "")),
    *(("HunYuanDenseV1", ""), ("SeedOss", "")),
    *(("SmolLM3", "no_rope_layer_interval"), ("Starcoder2", "sliding_window")),
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
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 60)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_().mul_(0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
            if weight.ndim == 1:
                weight.add_(1)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(make_tiny_models._tokenizer()))
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        if converted(kind, settings):
            found = logits(as_gguf(file), tokens.tolist())
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
