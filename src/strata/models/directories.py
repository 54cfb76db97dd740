"""Hugging Face checkpoints without experts: a table row each, as in ``variants.py``.

Sources of the rows: the names and the arithmetic of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from strata.models.variants import Directory, Variant

_FREE = Directory(bias="free")
_GATE_UP = {"mlp.gate_up_proj.weight": ("ffn_gate", "ffn_up")}

# By `architectures` of config.json.
DENSE: Mapping[str, Variant] = {
    "ArceeForCausalLM": Variant(gated=False, activation="relu2", directory=_FREE),
    "CohereForCausalLM": Variant(
        norm="layer",
        rope="interleaved",
        parallel="always",
        qk_norm="heads",
        logit_multiplies=True,
        tied=True,
        assumed={"logit_scale": 0.0625},
        directory=_FREE,
    ),
    "Cohere2ForCausalLM": Variant(
        norm="layer",
        rope="interleaved",
        rope_on="windows",
        rope_local="same",
        parallel="always",
        window_every=4,
        logit_multiplies=True,
        tied=True,
        assumed={"logit_scale": 0.0625},
        directory=_FREE,
    ),
    "Ernie4_5ForCausalLM": Variant(rope="interleaved", tied=True, directory=_FREE),
    "Exaone4ForCausalLM": Variant(before=False, after=True, qk_norm="head", directory=Directory()),
    "GlmForCausalLM": Variant(rope="interleaved", directory=Directory(fused=_GATE_UP, bias="free")),
    "Glm4ForCausalLM": Variant(
        rope="interleaved",
        after=True,
        directory=Directory(
            {
                "post_attention_norm": "post_self_attn_layernorm",
                "post_ffw_norm": "post_mlp_layernorm",
            },
            _GATE_UP,
            bias="free",
        ),
    ),
    "HunYuanDenseV1ForCausalLM": Variant(
        qk_norm="head",
        late=True,
        directory=Directory(
            {
                "attn_q_norm": "self_attn.query_layernorm",
                "attn_k_norm": "self_attn.key_layernorm",
            },
            bias="free",
        ),
    ),
    "NemotronForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="relu2",
        directory=Directory(bias="free", less_one=True),
    ),
    "OlmoForCausalLM": Variant(norm="layer", weightless=True, clamped="first", directory=_FREE),
    "PhiForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        parallel="always",
        assumed={"head_bias": True, "rope_partial": 0.5},
        directory=Directory(
            {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
            bias="free",
            frame={"output_norm": "{p}final_layernorm"},
        ),
    ),
    "SeedOssForCausalLM": Variant(directory=_FREE),
    "SmolLM3ForCausalLM": Variant(rope_on="three", tied=True, directory=_FREE),
    "StableLmForCausalLM": Variant(norm="layer", qk_norm="heads", directory=_FREE),
    "Starcoder2ForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope_local="same",
        window_every=0,
        tied=True,
        directory=Directory({"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, bias="free"),
    ),
}
