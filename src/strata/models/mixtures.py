"""Hugging Face checkpoints of mixtures of experts: a table row each, as in ``variants.py``.

Sources of the rows: the names and the arithmetic of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strata.models.config import MAX_LAYERS
from strata.models.errors import ConfigError
from strata.models.experts import Routing
from strata.models.keys import Keys, whole
from strata.models.rope import turned_layers
from strata.models.variants import Directory, Variant

_PARTS = ("gate", "up", "down")
_SIGMOID = Routing(scoring="sigmoid", renormalise=None)
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{e}.w3",
    "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias",
}
_GRANITE_NAMES = Directory(
    {
        "ffn_gate_inp": "block_sparse_moe.router.layer",
        "ffn_down_exps": "block_sparse_moe.output_linear",
        "ffn_down_shexp": "shared_mlp.output_linear",
    },
    {
        "block_sparse_moe.input_linear.weight": ("ffn_gate_exps", "ffn_up_exps"),
        "shared_mlp.input_linear.weight": ("ffn_gate_shexp", "ffn_up_shexp"),
    },
    bias="all",
)
_GRANITE = Variant(
    multipliers=True,
    mixture=Routing(),
    unread=("shared_experts", "dense_layers", "expert_ffn"),
    # What its configuration class has where the file says nothing.
    assumed={"attention_scale": 1.0},
    directory=_GRANITE_NAMES,
)


def _prefix(keys: Keys) -> dict[str, Any]:
    """Layers without experts come first, and may have a width of their own."""
    kinds = keys.find("ffn_kinds")[1]
    first = kinds.index("sparse") if isinstance(kinds, list) and "sparse" in kinds else 0
    dense = keys.raw("prefix_dense_intermediate_size")
    width = keys.integer("ffn")
    return {"expert_ffn": width, "dense_layers": first, "ffn": width if dense is None else dense}


def _dense_listed(keys: Keys) -> dict[str, Any]:
    """Which layers have no experts, where config.json lists their numbers."""
    layers = keys.integer("layers", high=MAX_LAYERS)
    listed = keys.raw("mlp_only_layers")
    listed = [0, 1] if listed is None else listed
    if not isinstance(listed, list):
        raise ConfigError("'mlp_only_layers': a list of layers is expected")
    dense = {whole("mlp_only_layers", i, 0, MAX_LAYERS) for i in listed}
    return {"ffn_kinds": ["dense" if i in dense else "sparse" for i in range(layers)]}


def _dbrx(keys: Keys) -> dict[str, Any]:
    """What the settings of the feed-forward choose: weights are divided by their sum, or not."""
    settings = keys.raw("ffn_config")
    settings = settings if isinstance(settings, Mapping) else {}
    act = settings.get("ffn_act_fn") or {"name": "silu"}
    if not isinstance(act, Mapping) or act.get("name") != "silu":
        raise ConfigError("'ffn_config.ffn_act_fn': 'silu' is expected")
    power = settings.get("moe_normalize_expert_weights", 1.0)
    if power not in (None, 1, 1.0) or isinstance(power, bool):
        raise ConfigError("'ffn_config.moe_normalize_expert_weights': 1 or null is expected")
    return {"expert_norm": power is not None}


# By `architectures` of config.json.
HUGGING_FACE: Mapping[str, Variant] = {
    "Cohere2MoeForCausalLM": Variant(
        norm="layer",
        rope="interleaved",
        rope_on="dense",
        rope_local="same",
        window_every=4,
        parallel="always",
        logit_multiplies=True,
        mixture=Routing(scoring="sigmoid", renormalise=None, halved=True),
        tied=True,
        assumed={"logit_scale": 0.0625, "expert_norm": True},
        directory=Directory(bias="all", follows=_prefix),
    ),
    # Experts as formats/foreign/dbrx.py tells them apart.
    "DbrxForCausalLM": Variant(
        norm="layer",
        clamped="first",
        mixture=Routing(renormalise=None),
        directory=Directory(
            {
                "attn_norm": "norm_attn_norm.norm_1",
                "ffn_norm": "norm_attn_norm.norm_2",
                "attn_qkv": "norm_attn_norm.attn.Wqkv",
                "attn_output": "norm_attn_norm.attn.out_proj",
                "ffn_gate_inp": "ffn.router.layer",
                "ffn_gate_exps.weight": "ffn.experts.mlp.w1",
                "ffn_up_exps.weight": "ffn.experts.mlp.v1",
                "ffn_down_exps.weight": "ffn.experts.mlp.w2",
            },
            frame={"token_embd": "{p}wte", "output_norm": "{p}norm_f"},
            prefixes=("transformer.", ""),
            layers="blocks",
            turned=("ffn_down_exps",),
            follows=_dbrx,
        ),
    ),
    "Dots1ForCausalLM": Variant(qk_norm="head", mixture=_SIGMOID, directory=Directory(bias="all")),
    "Ernie4_5_MoeForCausalLM": Variant(
        rope="interleaved",
        mixture=Routing(every=True),
        tied=True,
        assumed={"dense_layers": 1},
        directory=Directory({"exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"}),
    ),
    "ExaoneMoeForCausalLM": Variant(
        qk_norm="head",
        rope_on="windows",
        rope_local="same",
        window_every=4,
        mixture=_SIGMOID,
        directory=Directory({"exp_probs_b.bias": "mlp.e_score_correction_bias"}),
    ),
    "FlintForCausalLM": Variant(
        qk_norm="head",
        rope_on="windows",
        rope_local="same",
        window_every=4,
        sinks="all",
        mixture=Routing(scoring="sigmoid", renormalise=None),
        unread=("shared_experts",),
        assumed={"expert_norm": True},
        directory=Directory(
            {
                "attn_sinks.weight": "self_attn.softmax_offset",
                **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in _PARTS},
            },
            bias="all",
            follows=_dense_listed,
        ),
    ),
    "FlexOlmoForCausalLM": Variant(
        before=False,
        after=True,
        qk_norm="all",
        mixture=Routing(renormalise=None),
        unread=("expert_ffn", "shared_experts", "dense_layers"),
        directory=Directory(
            {
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            bias="all",
        ),
    ),
    "Glm4MoeForCausalLM": Variant(
        qk_norm="head", qk_free=True, mixture=_SIGMOID, directory=Directory(bias="qkv")
    ),
    # Experts as formats/foreign/gpt_oss.py presents them.
    "GptOssForCausalLM": Variant(
        rope_local="same",
        window_every=2,
        sinks="all",
        mixture=Routing(
            scoring="none",
            renormalise=False,
            biased=True,
            attrs={"softmax_chosen": True, "clamp": "oai", "limit": 7.0},
        ),
        assumed={"window": 128},
        directory=Directory(
            {
                "attn_sinks.weight": "self_attn.sinks",
                "ffn_gate_inp": "mlp.router",
                **{f"ffn_{part}_exps.weight": f"mlp.experts.{part}_proj" for part in _PARTS},
                **{f"ffn_{part}_exps.bias": f"mlp.experts.{part}_proj_bias" for part in _PARTS},
            },
            bias="free",
        ),
    ),
    "GraniteMoeForCausalLM": _GRANITE,
    "GraniteMoeSharedForCausalLM": _GRANITE,
    "GraniteMoeSWAForCausalLM": replace(
        _GRANITE,
        sinks="all",
        rope_local="same",
        window_every=4,
        full_first=True,
        assumed={"attention_scale": 1.0, "window": 128},
        directory=Directory(
            {
                "attn_sinks.weight": "self_attn.sinks",
                "ffn_gate_inp": "block_sparse_moe.router",
                "ffn_down_exps.weight": "block_sparse_moe.experts.down_proj",
                "ffn_down_shexp": "shared_mlp.output_linear",
            },
            {
                "block_sparse_moe.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
                "shared_mlp.input_linear.weight": ("ffn_gate_shexp", "ffn_up_shexp"),
            },
            bias="all",
            follows=turned_layers,
        ),
    ),
    "HunYuanMoEV1ForCausalLM": Variant(
        qk_norm="head",
        late=True,
        mixture=Routing(),
        unread=("dense_layers", "expert_ffn", "shared_experts"),
        assumed={"shared_experts": 1},
        directory=Directory(
            {
                "attn_q_norm": "self_attn.query_layernorm",
                "attn_k_norm": "self_attn.key_layernorm",
                "ffn_gate_inp": "mlp.gate.wg",
                **{f"ffn_{part}_shexp": f"mlp.shared_mlp.{part}_proj" for part in _PARTS},
            },
            bias="all",
        ),
    ),
    "MellumForCausalLM": Variant(
        qk_norm="head",
        window_every=0,
        mixture=Routing(renormalise=None),
        assumed={"expert_norm": True},
        directory=Directory(bias="all"),
    ),
    "MiniMaxM2ForCausalLM": Variant(
        qk_norm="all",
        mixture=Routing(scoring="sigmoid"),
        unread=("expert_ffn", "shared_experts", "shared_ffn", "dense_layers"),
        directory=Directory(_MIXTRAL),
    ),
    "OlmoeForCausalLM": Variant(
        qk_norm="all",
        clamped="normed",
        mixture=Routing(renormalise=None),
        directory=Directory(bias="all"),
    ),
    "PhimoeForCausalLM": Variant(
        norm="layer",
        mixture=Routing(scoring="sparsemixer", renormalise=False),
        unread=("expert_ffn", "shared_experts", "dense_layers"),
        directory=Directory(_MIXTRAL, bias="all"),
    ),
    "SolarOpenForCausalLM": Variant(
        mixture=_SIGMOID, assumed={"dense_layers": 0}, directory=Directory(bias="qkv")
    ),
    "Qwen2MoeForCausalLM": Variant(
        mixture=Routing(renormalise=None),
        directory=Directory(
            {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in _PARTS},
            bias="qkv",
            biased=True,
        ),
    ),
}
