"""Text parts of models that also see or hear, in directories that transformers wrote, against what
it makes of a text.

Needs torch and transformers.
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

pytestmark = pytest.mark.slow

VOCABULARY, TOKENS = 272, 250
TEXT: dict[str, Any] = {
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
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
}
AUDIO: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "output_dim": 64,
    "downsample_hidden_size": 8,
}
HEARING = {"Qwen2Audio", "Voxtral", "Qwen2_5OmniThinker", "Qwen3OmniMoeThinker"}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
HALF = {**SECTIONS, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 16}
ROUTED = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "head_dim": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 16,
    "n_group": 2,
    "topk_group": 1,
}
# The whole, its text's `model_type` where there is a choice, and its settings.
PARTS: list[tuple[str, str, dict[str, Any]]] = [
    ("Qwen2VL", "", {"rope_parameters": SECTIONS}),
    ("Qwen2_5_VL", "", {"rope_parameters": SECTIONS, "tie_word_embeddings": True}),
    ("Qwen3VL", "", {"rope_parameters": SECTIONS, "head_dim": 16}),
    ("Qwen3VLMoe", "", {"rope_parameters": SECTIONS, **EXPERTS, "norm_topk_prob": True}),
    ("Glm4v", "", {"rope_parameters": HALF}),
    ("Glm4vMoe", "", {"rope_parameters": HALF, **ROUTED}),
    ("Mistral3", "mistral", {"head_dim": 16, "sliding_window": None}),
    ("Mistral3", "ministral3", {"head_dim": 16}),
    ("Llava", "llama", {}),
    ("LlavaNext", "mistral", {"sliding_window": 16}),
    ("LlavaOnevision", "qwen2", {}),
    ("InternVL", "qwen3", {"head_dim": 16}),
    ("Idefics3", "llama", {}),
    ("SmolVLM", "llama", {"tie_word_embeddings": True}),
    ("AyaVision", "cohere2", {"head_dim": 16}),
    ("Lfm2Vl", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    ("Gemma3", "", {"head_dim": 16, "sliding_window": 16}),
    ("Exaone4_5_", "exaone4", {"head_dim": 16}),
    ("Glm46V", "glm4v_text", {"rope_parameters": HALF}),
    ("Glm46V", "glm4v_moe_text", {"rope_parameters": HALF, **ROUTED}),
    ("LightOnOcr", "qwen3", {"head_dim": 16}),
    ("Ovis2", "qwen2", {}),
    ("Qwen2Audio", "qwen2", {}),
    ("Qwen2_5OmniThinker", "", {"rope_parameters": SECTIONS}),
    ("Qwen3OmniMoeThinker", "", {"rope_parameters": SECTIONS, **EXPERTS}),
    ("Voxtral", "llama", {"head_dim": 16}),
    ("Cohere2Vision", "cohere2", {"head_dim": 16}),
    ("FastVlm", "qwen2", {}),
    ("Kimi_K25", "deepseek_v3", {**ROUTED, **LATENT, "tie_word_embeddings": False}),
    ("KimiK25", "kimi_k2", {**ROUTED, **LATENT, "tie_word_embeddings": False}),
]


def made(transformers: Any, kind: str, text: str, settings: dict[str, Any]) -> Any:
    """transformers' model of such sizes."""
    kind, text = ("Kimi_K25", "deepseek_v3") if kind == "KimiK25" else (kind, text)
    sizes = {**TEXT, **settings, **({"model_type": text} if text else {})}
    config = getattr(transformers, f"{kind}Config")
    whole: dict[str, Any] = {"text_config": sizes, "vision_config": dict(VISION)}
    if kind in HEARING:
        whole["audio_config"] = dict(AUDIO)
    if kind in HEARING and not kind.endswith("Thinker"):
        del whole["vision_config"]
    vision = {
        "Mistral3": {"model_type": "pixtral"},
        "Llava": {"model_type": "clip_vision_model"},
        "LlavaNext": {"model_type": "clip_vision_model"},
        "LlavaOnevision": {"model_type": "siglip_vision_model"},
        "LightOnOcr": {"model_type": "pixtral"},
        "AyaVision": {"model_type": "siglip_vision_model"},
        "Cohere2Vision": {"model_type": "siglip_vision_model"},
        "FastVlm": {"model_type": "clip_vision_model"},
        "Lfm2Vl": {"model_type": "siglip2_vision_model"},
        "InternVL": {"image_size": [28, 28], "patch_size": [14, 14]},
    }
    whole.get("vision_config", {}).update(vision.get(kind, {}))
    if "tie_word_embeddings" in settings:
        whole["tie_word_embeddings"] = settings["tie_word_embeddings"]
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config(**whole)).float().eval()


def as_published(folder: Path, kind: str, text: str) -> None:
    """Kimi K2.5 with the names of its published checkpoints: transformers writes the layers of its
    text with the word for those of the part that sees."""
    stored = pytest.importorskip("safetensors.torch")
    path = folder / "model.safetensors"
    found = stored.load_file(path)
    tensors = {re.sub(r"^(lang.*)\.blocks\.", r"\1.layers.", n): t for n, t in found.items()}
    stored.save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [f"{kind}ForConditionalGeneration"]
    config["text_config"]["model_type"] = text
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("kind", "text", "settings"), PARTS)
def test_logits_are_those_of_transformers(
    kind: str, text: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = made(transformers, kind, text, settings)
    tokens = np.random.default_rng(1).integers(2, TOKENS, 60)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_().mul_(0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
            if weight.ndim == 1 and not name.endswith("bias"):
                weight.add_(1)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    # Of the whole transformers leaves out what Cohere 2 multiplies logits by.
    expected *= 0.0625 if text == "cohere2" else 1.0
    model.save_pretrained(tmp_path)
    if kind in ("Kimi_K25", "KimiK25"):
        as_published(tmp_path, kind, text)
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        check_native(file, tokens.tolist())
