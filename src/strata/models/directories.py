"""Hugging Face checkpoints without experts: a table row each, as in ``variants.py``.

Sources of the rows: the names and the arithmetic of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.models.config import MAX_LAYERS
from strata.models.errors import ConfigError
from strata.models.keys import Keys, whole
from strata.models.rope import turned_layers
from strata.models.variants import Directory, Variant


def _ffn(keys: Keys) -> dict[str, Any]:
    """A feed-forward four times as wide as the model, where its width is not stated."""
    return {} if keys.find("ffn")[1] is not None else {"ffn": 4 * keys.integer("width")}


def _few_heads(keys: Keys) -> dict[str, Any]:
    """Key heads where config.json says whether there is one, or some, or one for each query."""
    heads = keys.integer("heads")
    one = keys.flag("multi_query", True)
    some = keys.flag("grouped", False)
    return {
        **_ffn(keys),
        "kv_heads": keys.integer("kv_heads", heads) if some else 1 if one else heads,
    }


def _positions(keys: Keys) -> dict[str, Any]:
    return _ffn(keys) if keys.stated("rope_partial") else {**_ffn(keys), "rope_partial": 0.25}


def _neo(keys: Keys) -> dict[str, Any]:
    """GPT-Neo's words for sizes and windows; its scores are not scaled."""
    layers = whole("num_layers", keys.raw("num_layers"), 1, MAX_LAYERS)
    kinds = keys.raw("attention_layers")
    if kinds is None:
        kinds = ["global", "local"] * (layers // 2) + ["global"] * (layers % 2)
        if keys.raw("attention_types") not in (None, [[["global", "local"], layers // 2]]):
            raise ConfigError("'attention_layers' is missing: 'attention_types' is not read")
    named = {"global": "full_attention", "local": "sliding_attention"}
    listed = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)
    return {
        **_ffn(keys),
        "layers": layers,
        "heads": keys.raw("num_heads"),
        "layer_types": [named.get(kind, kind) for kind in kinds] if listed else kinds,
        "window": keys.raw("window_size"),
        "attention_scale": 1.0,
    }


def _exaone(keys: Keys) -> dict[str, Any]:
    """EXAONE's words for sizes."""
    return {"layers": keys.raw("num_layers"), "rms_eps": keys.raw("layer_norm_epsilon")}


_FREE = Directory(bias="free")
_WORDS = ("transformer.", "")
_FOUR = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
_GPT = {"token_embd": "{p}wte", "output_norm": "{p}ln_f"}
_FALCON = {"attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense"}
_GATE_UP = {"mlp.gate_up_proj.weight": ("ffn_gate", "ffn_up")}

# By `architectures` of config.json.
DENSE: Mapping[str, Variant] = {
    "ApertusForCausalLM": Variant(
        qk_norm="head",
        gated=False,
        activation="xielu",
        directory=Directory(
            {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
            bias="free",
            unused=r".*\.mlp\.act_fn\.(alpha_p|alpha_n|beta|eps)",
        ),
    ),
    "ArceeForCausalLM": Variant(gated=False, activation="relu2", directory=_FREE),
    "BitNetForCausalLM": Variant(
        sub_norms=True,
        activation="relu2",
        tied=True,
        directory=Directory(
            {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
            bias="free",
        ),
    ),
    "BloomForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope=None,
        alibi=8.0,
        embed_norm="weights",
        tied=True,
        assumed={"context": 2048},
        directory=Directory(
            {**_FALCON, **_FOUR},
            bias="free",
            frame={
                "token_embd": "{p}word_embeddings",
                "token_embd_norm": "{p}word_embeddings_layernorm",
                "output_norm": "{p}ln_f",
            },
            prefixes=_WORDS,
            layers="h",
            by_head=True,
            follows=_ffn,
            only={"normed_residual": False},
        ),
    ),
    "CodeGenForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope="interleaved",
        parallel="always",
        assumed={"head_bias": True},
        directory=Directory(
            {
                "attn_norm": "ln_1",
                "attn_qkv": "attn.qkv_proj",
                "attn_output": "attn.out_proj",
                "ffn_up": "mlp.fc_in",
                "ffn_down": "mlp.fc_out",
            },
            bias="free",
            frame=_GPT,
            prefixes=_WORDS,
            layers="h",
            by_head=True,
            # As many parts as processors that it was trained on.
            groups=4,
            order="qvk",
            follows=_ffn,
            unused=r".*\.attn\.(causal_mask|bias|masked_bias|embed_positions)",
        ),
    ),
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
    "CwmForCausalLM": Variant(
        rope_local="same", window_every=4, full_first=True, directory=Directory()
    ),
    "Ernie4_5ForCausalLM": Variant(rope="interleaved", tied=True, directory=_FREE),
    "Exaone4ForCausalLM": Variant(before=False, after=True, qk_norm="head", directory=Directory()),
    "ExaoneForCausalLM": Variant(
        directory=Directory(
            {
                **{"attn_norm": "ln_1", "ffn_norm": "ln_2", "ffn_down": "mlp.c_proj"},
                **{f"attn_{letter}": f"attn.attention.{letter}_proj" for letter in "qkv"},
                "attn_output": "attn.attention.out_proj",
                **{"ffn_gate": "mlp.c_fc_0", "ffn_up": "mlp.c_fc_1"},
            },
            frame=_GPT,
            prefixes=_WORDS,
            layers="h",
            follows=_exaone,
            unused=r".*\.rotary\.inv_freq",
        ),
    ),
    "FalconForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu",
        parallel="always",
        tied=True,
        assumed={"context": 2048},
        directory=Directory(
            {**_FALCON, **_FOUR, "attn_norm": "input_layernorm|ln_mlp", "attn_norm_2": "ln_attn"},
            bias="free",
            frame={"token_embd": "{p}word_embeddings", "output_norm": "{p}ln_f"},
            prefixes=_WORDS,
            layers="h",
            by_head=True,
            acts=True,
            follows=_few_heads,
            only={"alibi_used": False, "parallel": True},
        ),
    ),
    "GemmaForCausalLM": Variant(
        activation="gelu_tanh",
        width_scale=True,
        tied=True,
        directory=Directory(bias="free", less_one=True),
    ),
    "GPTBigCodeForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope=None,
        positions=True,
        tied=True,
        directory=Directory(
            {
                "attn_norm": "ln_1",
                "ffn_norm": "ln_2",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
            bias="free",
            frame={
                "token_embd": "{p}wte",
                "position_embd": "{p}wpe",
                "output_norm": "{p}ln_f",
            },
            prefixes=_WORDS,
            layers="h",
            follows=_few_heads,
            only={"multi_query": True},
        ),
    ),
    "GPTJForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope="interleaved",
        parallel="always",
        assumed={"head_bias": True},
        directory=Directory(
            {
                "attn_norm": "ln_1",
                "attn_q": "attn.q_proj",
                "attn_k": "attn.k_proj",
                "attn_v": "attn.v_proj",
                "attn_output": "attn.out_proj",
                "ffn_up": "mlp.fc_in",
                "ffn_down": "mlp.fc_out",
            },
            bias="free",
            frame=_GPT,
            prefixes=_WORDS,
            layers="h",
            follows=_ffn,
            unused=r".*\.attn\.(bias|masked_bias|embed_positions)",
        ),
    ),
    "GPTNeoForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        rope=None,
        positions=True,
        tied=True,
        assumed={"window": 256},
        directory=Directory(
            {
                **{"attn_norm": "ln_1", "ffn_norm": "ln_2"},
                **{f"attn_{letter}": f"attn.attention.{letter}_proj" for letter in "qkv"},
                "attn_output": "attn.attention.out_proj",
                **{"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
            },
            bias="free",
            frame={**_GPT, "position_embd": "{p}wpe"},
            prefixes=_WORDS,
            layers="h",
            acts=True,
            follows=_neo,
            unused=r".*\.attn\.attention\.(bias|masked_bias)",
        ),
    ),
    "GPTNeoXForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu",
        parallel="stated",
        directory=Directory(
            {**_FOUR, "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense"},
            bias="free",
            frame={
                "token_embd": "{p}embed_in",
                "output_norm": "{p}final_layer_norm",
                "output": "embed_out",
            },
            prefixes=("gpt_neox.", ""),
            by_head=True,
            acts=True,
            follows=_positions,
            unused=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        ),
    ),
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
    "GraniteSWAForCausalLM": Variant(
        multipliers=True,
        sinks="all",
        rope_local="same",
        window_every=4,
        full_first=True,
        tied=True,
        assumed={"attention_scale": 1.0, "window": 128},
        directory=Directory(
            {"attn_sinks.weight": "self_attn.sinks"}, bias="all", follows=turned_layers
        ),
    ),
    "HeliumForCausalLM": Variant(rope="interleaved", directory=_FREE),
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
    "HyperCLOVAXForCausalLM": Variant(
        after=True,
        multipliers=True,
        logit_multiplies=True,
        directory=Directory(
            {"post_attention_norm": "post_norm1", "post_ffw_norm": "post_norm2"}, bias="free"
        ),
    ),
    "InternLM2ForCausalLM": Variant(
        directory=Directory(
            {
                **{"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"},
                **{"attn_qkv": "attention.wqkv", "attn_output": "attention.wo"},
                "ffn_gate": "feed_forward.w1",
                "ffn_up": "feed_forward.w3",
                "ffn_down": "feed_forward.w2",
            },
            bias="free",
            frame={"token_embd": "{p}tok_embeddings", "output": "output"},
            by_head=True,
        )
    ),
    "Jais2ForCausalLM": Variant(norm="layer", gated=False, activation="relu2", directory=_FREE),
    "MinistralForCausalLM": Variant(rope_local="same", window_every=0, directory=Directory()),
    "Ministral3ForCausalLM": Variant(rope_local="same", window_every=0, directory=Directory()),
    "MptForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="gelu",
        rope=None,
        alibi_stated=True,
        clamped="first",
        tied=True,
        assumed={"alibi": 8.0},
        directory=Directory(
            {
                "attn_norm": "norm_1",
                "ffn_norm": "norm_2",
                "attn_qkv": "attn.Wqkv",
                "attn_output": "attn.out_proj",
                "ffn_up": "ffn.up_proj",
                "ffn_down": "ffn.down_proj",
            },
            frame={"token_embd": "{p}wte", "output_norm": "{p}norm_f"},
            prefixes=_WORDS,
            layers="blocks",
            follows=_ffn,
            only={"alibi_used": True},
        ),
    ),
    "NanoChatForCausalLM": Variant(
        weightless=True,
        embed_norm="bare",
        backward=True,
        qk_norm="heads",
        qk_free=True,
        late=True,
        gated=False,
        activation="relu2",
        softcapped=True,
        directory=Directory({"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}, bias="all"),
    ),
    "NemotronForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="relu2",
        directory=Directory(bias="free", less_one=True),
    ),
    "OlmoForCausalLM": Variant(norm="layer", weightless=True, clamped="first", directory=_FREE),
    "PersimmonForCausalLM": Variant(
        norm="layer",
        gated=False,
        activation="relu2",
        qk_norm="head",
        qk_free=True,
        assumed={"rope_partial": 0.5},
        directory=Directory(
            {
                **_FOUR,
                "attn_qkv": "self_attn.query_key_value",
                "attn_output": "self_attn.dense",
                "attn_q_norm": "self_attn.q_layernorm",
                "attn_k_norm": "self_attn.k_layernorm",
            },
            bias="free",
            frame={"output_norm": "{p}final_layernorm"},
            by_head=True,
        ),
    ),
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
