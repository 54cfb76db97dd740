"""Models that also see or hear: their text part is one of the families that are read alone.

Names as transformers has them: ``architectures`` of the whole, ``model_type`` of the text part.
Positions of several axes are one axis where there is only text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from strata.formats.errors import shown
from strata.models.errors import UnknownArchitecture

# Where config.json keeps the settings of the text part: one level down, or two.
_SETTINGS = ("thinker_config", "text_config", "llm_config")

# The family of a text part, by its `model_type`.
_FAMILIES: Mapping[str, str] = {
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "dots3_note_text": "Dots3NoteForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm4v_moe_text": "Glm4MoeForCausalLM",
    "glm4v_text": "Glm4ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "minimax_m3_vl_text": "MiniMaxM3VLForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral4": "Mistral4ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_5_omni_text": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_omni_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}

# The `model_type` of the text part where config.json does not say it.
WRAPPERS: Mapping[str, str] = {
    "AyaVisionForConditionalGeneration": "cohere2",
    "Cohere2VisionForConditionalGeneration": "cohere2",
    "Dots3NoteForConditionalGeneration": "dots3_note_text",
    "Exaone4_5_ForConditionalGeneration": "exaone4",
    "FastVlmForConditionalGeneration": "qwen2",
    "Glm46VForConditionalGeneration": "glm4v_text",
    "Glm4vForConditionalGeneration": "glm4v_text",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe_text",
    "Idefics3ForConditionalGeneration": "llama",
    "InternVLChatModel": "qwen2",
    "InternVLForConditionalGeneration": "qwen2",
    "KimiK25ForConditionalGeneration": "deepseek_v3",
    "Kimi_K25ForConditionalGeneration": "deepseek_v3",
    "Lfm2VlForConditionalGeneration": "lfm2",
    "LightOnOcrForConditionalGeneration": "qwen3",
    "LlavaForConditionalGeneration": "llama",
    "LlavaNextForConditionalGeneration": "llama",
    "LlavaOnevisionForConditionalGeneration": "qwen2",
    "MiniMaxM3SparseForConditionalGeneration": "minimax_m3_vl_text",
    "Mistral3ForConditionalGeneration": "mistral",
    "Ovis2ForConditionalGeneration": "qwen2",
    "Qwen2AudioForConditionalGeneration": "qwen2",
    "Qwen2VLForConditionalGeneration": "qwen2_vl_text",
    "Qwen2_5OmniThinkerForConditionalGeneration": "qwen2_5_omni_text",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl_text",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "qwen3_omni_moe_text",
    "Qwen3VLForConditionalGeneration": "qwen3_vl_text",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe_text",
    "SmolVLMForConditionalGeneration": "llama",
    "VoxtralForConditionalGeneration": "llama",
}

PREFIXES = ("language_model.", "model.language_model.", "model.text_model.", "thinker.", "llm.")
"""What may be before the names of a text part's tensors."""
_OTHER_SENSES = re.compile("vision|visual|audio|image|talker|projector|multi_modal|connector")


def settings(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The hyperparameters of the text part, or of the model where it is nothing else."""
    for key in _SETTINGS:
        inner = metadata.get(key)
        metadata = inner if isinstance(inner, dict) else metadata
    return metadata


def several_senses(metadata: Mapping[str, Any]) -> bool:
    """Whether config.json describes a model that also sees or hears."""
    return any(isinstance(v, dict) and _OTHER_SENSES.match(k) for k, v in metadata.items()) or any(
        isinstance(metadata.get(key), dict) for key in _SETTINGS
    )


def family(name: str, metadata: Mapping[str, Any]) -> str:
    """The architecture of the text part of a model called ``name``: itself where it is no wrapper.

    Raises UnknownArchitecture for one whose text part is no model of its own.
    """
    if name not in WRAPPERS:
        return name
    inner = settings(metadata)
    kind = inner.get("model_type") if inner is not metadata else None
    kind = kind if isinstance(kind, str) else WRAPPERS[name]
    if kind not in _FAMILIES:
        raise UnknownArchitecture(
            f"'{name}' with text of {shown(kind)} is not known; known: "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[kind]
