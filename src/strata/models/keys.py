"""Hyperparameters by one canonical name, read and checked from GGUF metadata or config.json.

GGUF keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Hugging Face keys: config.json
as the configuration classes of transformers write it, old and new spellings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, Literal, TypeVar

import numpy as np

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models import text_parts
from strata.models.errors import ConfigError

# canonical name -> (GGUF key without the architecture, config.json keys from newest to oldest)
_KEYS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "layers": ("block_count", ("num_hidden_layers", "n_layer", "n_layers")),
    "width": ("embedding_length", ("hidden_size", "n_embd", "n_embed", "d_model")),
    "ffn": ("feed_forward_length", ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")),
    "heads": ("attention.head_count", ("num_attention_heads", "n_head", "n_heads")),
    "kv_heads": ("attention.head_count_kv", ("num_key_value_heads", "num_kv_heads")),
    "multi_query": (None, ("multi_query",)),
    "grouped": (None, ("new_decoder_architecture",)),
    "head_dim": ("attention.key_length", ("head_dim",)),
    "value_dim": ("attention.value_length", ()),
    "head_dim_local": ("attention.key_length_swa", ()),
    "value_dim_local": ("attention.value_length_swa", ()),
    "head_dim_global": (None, ("global_head_dim",)),
    "kv_heads_global": (None, ("num_global_key_value_heads",)),
    "k_is_v": (None, ("attention_k_eq_v",)),
    "shared_kv_layers": ("attention.shared_kv_layers", ("num_kv_shared_layers",)),
    "double_ffn": (None, ("use_double_wide_mlp",)),
    "per_layer": ("embedding_length_per_layer_input", ("hidden_size_per_layer_input",)),
    "per_layer_vocab": (None, ("vocab_size_per_layer_input",)),
    "altup_inputs": ("altup.num_inputs", ("altup_num_inputs",)),
    "altup_active": ("altup.active_idx", ("altup_active_idx",)),
    "altup_scaled": (None, ("altup_correct_scale",)),
    "laurel_rank": (None, ("laurel_rank",)),
    "sparsity": ("activation_sparsity_scale", ("activation_sparsity_pattern",)),
    "chunk": (None, ("attention_chunk_size",)),
    "dense_ffn": (None, ("intermediate_size_mlp",)),
    "qk_norm": (None, ("use_qk_norm",)),
    "temperature": (None, ("attn_temperature_tuning",)),
    "temperature_floor": (None, ("floor_scale",)),
    "temperature_growth": (None, ("attn_scale",)),
    "root_scale": (None, ("mup_enabled",)),
    "expert_block": (None, ("enable_moe_block",)),
    "context": (
        "context_length",
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    ),
    "vocab": (None, ("vocab_size",)),
    "rms_eps": ("attention.layer_norm_rms_epsilon", ("rms_norm_eps",)),
    "layer_norm_eps": (
        "attention.layer_norm_epsilon",
        ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps", "rms_norm_eps"),
    ),
    "activation": (None, ("hidden_activation", "hidden_act", "activation_function", "activation")),
    "bidirectional": (None, ("use_bidirectional_attention",)),
    "windowed": (None, ("use_sliding_window",)),
    "full_layers": (None, ("max_window_layers",)),
    "tied": (None, ("tie_word_embeddings",)),
    "attention_bias": (None, ("attention_bias", "qkv_bias")),
    "head_bias": (None, ("lm_head_bias",)),
    "mlp_bias": (None, ("mlp_bias",)),
    "window": ("attention.sliding_window", ("sliding_window",)),
    "window_pattern": (
        "attention.sliding_window_pattern",
        ("sliding_window_pattern", "_sliding_window_pattern"),
    ),
    "layer_types": (None, ("layer_types", "layers_block_type")),
    "attention_softcap": ("attn_logit_softcapping", ("attn_logit_softcapping",)),
    "logit_softcap": ("final_logit_softcapping", ("final_logit_softcapping",)),
    "output_scale": ("attention.output_scale", ()),
    "attention_scale": ("attention.scale", ("attention_multiplier", "attn_config.softmax_scale")),
    "query_scalar": (None, ("query_pre_attn_scalar",)),
    "embedding_scale": ("embedding_scale", ("embedding_multiplier",)),
    "residual_scale": ("residual_scale", ("residual_multiplier",)),
    "full_alpha": (None, ("full_attn_alpha_factor",)),
    "full_beta": (None, ("full_attn_beta_factor",)),
    "linear_alpha": (None, ("linear_attn_alpha_factor",)),
    "linear_beta": (None, ("linear_attn_beta_factor",)),
    "mlp_alpha": (None, ("mlp_alpha_factor",)),
    "mlp_beta": (None, ("mlp_beta_factor",)),
    "logit_scale": ("logit_scale", ("logits_scaling", "logit_scale")),
    "alibi": ("attention.max_alibi_bias", ("attn_config.alibi_bias_max",)),
    "alibi_used": (None, ("alibi", "attn_config.alibi")),
    "normed_residual": (None, ("apply_residual_connection_post_layernorm",)),
    "clamp_qkv": ("attention.clamp_kqv", ("clip_qkv", "attn_config.clip_qkv")),
    "parallel": ("use_parallel_residual", ("use_parallel_residual", "parallel_attn")),
    "rope_layers": ("attention.rope_pattern", ("no_rope_layers",)),
    "rope_sections": ("rope.dimension_sections", ()),
    "temperature_scale": (
        "attention.temperature_scale",
        ("rope_parameters.llama_4_scaling_beta",),
    ),
    "temperature_length": (
        "attention.temperature_length",
        ("rope_parameters.original_max_position_embeddings",),
    ),
    "loops": ("num_loops", ()),
    "causal": ("attention.causal", ()),
    "pooling": ("pooling_type", ()),
    "token_types": (None, ("type_vocab_size",)),
    "xielu_negative": ("xielu.alpha_n", ()),
    "xielu_positive": ("xielu.alpha_p", ()),
    "xielu_beta": ("xielu.beta", ()),
    "xielu_eps": ("xielu.eps", ()),
    "indexer_top_k": ("attention.indexer.top_k", ("index_topk",)),
    "embed_scale": (None, ("scale_emb",)),
    "depth_scale": (None, ("scale_depth",)),
    "base_width": (None, ("dim_model_base",)),
    "expert_width": ("moe_latent_size", ("moe_latent_size",)),
    "latent_key": ("attention.key_length_mla", ()),
    "latent_value": ("attention.value_length_mla", ()),
    "latent_key_local": ("attention.key_length_mla_swa", ()),
    "latent_value_local": ("attention.value_length_mla_swa", ()),
    "kv_rank_local": ("attention.kv_lora_rank_swa", ()),
    "q_rank": ("attention.q_lora_rank", ("q_lora_rank",)),
    "kv_rank": ("attention.kv_lora_rank", ("kv_lora_rank",)),
    "nope_dim": (None, ("qk_nope_head_dim",)),
    "pe_dim": (None, ("qk_rope_head_dim",)),
    "v_head_dim": (None, ("v_head_dim",)),
    "next_token_layers": ("nextn_predict_layers", ("num_nextn_predict_layers", "num_mtp_layers")),
    "experts": (
        "expert_count",
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    ),
    "top_k": (
        "expert_used_count",
        (
            *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"),
            *("experts_per_token", "top_k_experts"),
        ),
    ),
    "expert_ffn": ("expert_feed_forward_length", ("moe_intermediate_size",)),
    "shared_experts": (
        "expert_shared_count",
        ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    ),
    "shared_ffn": (
        "expert_shared_feed_forward_length",
        (
            *("shared_expert_intermediate_size", "shared_intermediate_size"),
            "moe_shared_expert_intermediate_size",
        ),
    ),
    "expert_scoring": ("expert_gating_func", ()),
    "expert_scale": (
        "expert_weights_scale",
        ("routed_scaling_factor", "route_scale", "router_scaling_factor"),
    ),
    "expert_norm": ("expert_weights_norm", ("norm_topk_prob",)),
    "expert_groups": ("expert_group_count", ("n_group",)),
    "expert_groups_kept": ("expert_group_used_count", ("topk_group",)),
    "dense_layers": (
        "leading_dense_block_count",
        ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"),
    ),
    "expert_step": (
        "interleave_moe_layer_step",
        ("interleave_moe_layer_step", "moe_layer_interval"),
    ),
    "router_jitter": (None, ("router_jitter_noise",)),
    "chunk_ffn": ("expert_chunk_feed_forward_length", ()),
    "chunk_scale": ("expert_group_scale", ()),
    "chunk_experts": ("experts_per_group", ()),
    "last_expert_layer": (None, ("moe_layer_end_index",)),
    "ffn_kinds": (None, ("mlp_layer_types",)),
    "expert_clamp": ("swiglu_clamp_exp", ()),
    "value_scale": ("attention.value_scale", ()),
    "streams": ("hyper_connection.count", ()),
    "stream_eps": ("hyper_connection.epsilon", ()),
    "stream_magnitude": ("hyper_connection.magnitude", ()),
    "stack_layers": ("hrm.layers_per_stack", ()),
    "high_cycles": ("hrm.h_cycles", ()),
    "low_cycles": ("hrm.l_cycles", ()),
    "indexer_block": ("attention.indexer.block_size", ()),
    "shared_clamp": ("swiglu_clamp_shexp", ()),
    "biased": (None, ("enable_bias",)),
    "affine": (None, ("layer_norm_elementwise_affine",)),
    "norm_before": (None, ("do_layer_norm_before",)),
    "no_last_norm": (None, ("_remove_final_layer_norm",)),
    "embedding_width": (None, ("word_embed_proj_dim",)),
    "ssm_inner": ("ssm.inner_size", ("mamba_d_ssm",)),
    "ssm_states": ("ssm.state_size", ("state_size", "mamba_d_state", "ssm_state_size")),
    "ssm_taps": ("ssm.conv_kernel", ("conv_kernel", "mamba_d_conv")),
    "ssm_heads": ("ssm.time_step_rank", ("mamba_n_heads", "mamba_num_heads", "num_heads")),
    "ssm_head_dim": (None, ("mamba_d_head", "mamba_head_dim", "head_dim")),
    "ssm_rank": ("ssm.time_step_rank", ("time_step_rank", "mamba_dt_rank")),
    "ssm_groups": ("ssm.group_count", ("n_groups", "mamba_n_groups")),
    "ssm_expand": (None, ("expand", "mamba_expand")),
    "ssm_normed": (None, ("mamba_rms_norm",)),
    "ssm_norm_first": (None, ("mamba_norm_before_gate",)),
    "ssm_in_scale": (None, ("ssm_in_multiplier",)),
    "ssm_out_scale": (None, ("ssm_out_multiplier",)),
    "ssm_scales": (None, ("ssm_multipliers",)),
    "ffn_scales": (None, ("mlp_multipliers",)),
    "key_scale": (None, ("key_multiplier",)),
    "attention_in_scale": (None, ("attention_in_multiplier",)),
    "attention_out_scale": (None, ("attention_out_multiplier",)),
    "head_scale": (None, ("lm_head_multiplier",)),
    "conv_taps": ("shortconv.l_cache", ("conv_L_cache",)),
    "ffn_adjusted": (None, ("block_auto_adjust_ff_dim",)),
    "ffn_multiple": (None, ("block_multiple_of",)),
    "ffn_multiplier": (None, ("block_ffn_dim_multiplier",)),
    "hybrid_pattern": (None, ("hybrid_override_pattern",)),
    "attention_period": (None, ("attn_layer_period",)),
    "attention_offset": (None, ("attn_layer_offset",)),
    "expert_period": (None, ("expert_layer_period",)),
    "expert_offset": (None, ("expert_layer_offset",)),
    "recurrent_layers": ("attention.recurrent_layers", ()),
    "full_interval": ("full_attention_interval", ("full_attention_interval",)),
    "delta_inner": ("ssm.inner_size", ()),
    "delta_k_dim": ("ssm.state_size", ("linear_key_head_dim",)),
    "delta_v_dim": (None, ("linear_value_head_dim",)),
    "delta_key_heads": ("ssm.group_count", ("linear_num_key_heads",)),
    "delta_heads": ("ssm.time_step_rank", ("linear_num_value_heads",)),
    "wkv_dim": ("wkv.head_size", ()),
    "token_shifts": ("token_shift_count", ()),
    "rescale": ("rescale_every_n_layers", ()),
    "mix_rank": ("time_mix_extra_dim", ()),
    "decay_rank_6": ("time_decay_extra_dim", ()),
    "decay_rank": ("attention.decay_lora_rank", ()),
    "iclr_rank": ("attention.iclr_lora_rank", ()),
    "value_rank": ("attention.value_residual_mix_lora_rank", ()),
    "gate_rank": ("attention.gate_lora_rank", ()),
    "kda_dim": ("kda.head_dim", ()),
    "kda_safe": ("kda.safe_gate", ()),
    "kda_bound": ("kda.gate_lower_bound", ()),
    "delta_taps": ("ssm.conv_kernel", ("linear_conv_kernel_dim",)),
    "rope_used": ("rope.scaling.finetuned", ()),
    "rope_base": ("rope.freq_base", ("rope_theta", "rotary_emb_base")),
    "rope_base_local": ("rope.freq_base_swa", ("rope_local_base_freq",)),
    "rope_dim": ("rope.dimension_count", ()),
    "rope_dim_local": ("rope.dimension_count_swa", ()),
    "rope_partial": (None, ("partial_rotary_factor", "rotary_pct")),
    "rope_neighbours": (None, ("rope_interleave",)),
    "rope_width": (None, ("rotary_dim",)),
    "rope_type": ("rope.scaling.type", ()),
    "rope_factor": ("rope.scaling.factor", ()),
    "rope_factor_old": ("rope.scale_linear", ()),
    "rope_original_context": (
        "rope.scaling.original_context_length",
        (
            "original_max_position_embeddings",
            "rope_parameters.original_max_position_embeddings",
        ),
    ),
    "rope_attention_factor": ("rope.scaling.attn_factor", ()),
    "rope_log_multiplier": ("rope.scaling.yarn_log_multiplier", ()),
    "rope_beta_fast": ("rope.scaling.yarn_beta_fast", ()),
    "rope_beta_slow": ("rope.scaling.yarn_beta_slow", ()),
}

_T = TypeVar("_T")
REQUIRED: Any = object()
"""The default that stands for: absence is an error."""


class Keys:
    """The hyperparameters of one file. Every reader checks type and range and names the key.

    ``default`` is returned where the key is absent or null; without one, absence is an error.
    """

    def __init__(self, file: ModelFile, architecture: str) -> None:
        self.kind: Literal["gguf", "huggingface"] = file.kind
        self._prefix = f"{architecture}."
        metadata = file.metadata
        self._metadata: Mapping[str, Any] = (
            text_parts.settings(metadata) if file.kind == "huggingface" else metadata
        )

    def find(self, name: str) -> tuple[str, Any]:
        """The key as the file spells it, and its value (None where absent)."""
        gguf, others = _KEYS[name]
        names: tuple[str, ...] = others
        if self.kind == "gguf":
            names = (self._gguf(gguf),) if gguf else ()
        for key in names:
            value = self._get(key)
            if value is not None:
                return key, value.tolist() if isinstance(value, np.ndarray) else value
        return (names[0] if names else name), None

    def _get(self, key: str) -> Any:
        """A value under the file's own key; with a dot in it, of an object in config.json."""
        # What is assumed lies under the whole name.
        if self.kind == "huggingface" and "." in key and key not in self._metadata:
            outer, key = key.split(".")
            inner = self._metadata.get(outer)
            return inner.get(key) if isinstance(inner, Mapping) else None
        return self._metadata.get(key)

    def without(self, *names: str) -> Keys:
        """The same keys but for some."""
        other = copy(self)
        keys = {self.find(name)[0] for name in names}
        other._metadata = {k: v for k, v in self._metadata.items() if k not in keys}
        return other

    def assuming(self, values: Mapping[str, Any]) -> Keys:
        """The same keys, and ``values`` by canonical name of what the file does not state."""
        other = copy(self)
        missing = {self.find(name)[0]: v for name, v in values.items() if not self.stated(name)}
        other._metadata = {**self._metadata, **missing}
        return other

    def stating(self, values: Mapping[str, Any]) -> Keys:
        """The same keys, but for ``values`` by canonical name, which follow from others."""
        other = self.without(*values)
        named = {_KEYS[name][1][0]: value for name, value in values.items()}
        other._metadata = {**other._metadata, **named}
        return other

    def _gguf(self, key: str) -> str:
        """The whole key: but for xIELU's parameters it begins with the architecture."""
        return key if key.startswith("xielu.") else self._prefix + key

    def stated(self, name: str) -> bool:
        """Whether the file has the key at all; config.json says 'none' with an explicit null."""
        gguf, others = _KEYS[name]
        names = (self._gguf(gguf or ""),) if self.kind == "gguf" else others
        return any(key in self._metadata or self._get(key) is not None for key in names)

    def raw(self, key: str) -> Any:
        """A value under the file's own key, None where absent; whoever asks checks it."""
        return self._metadata.get(key)

    def texts(self, name: str, count: int, known: Collection[str]) -> list[str] | None:
        """A list of ``count`` strings, each one of ``known``; None where absent."""
        key, value = self.find(name)
        if value is None:
            return None
        fits = isinstance(value, list) and len(value) == count
        if not fits or not all(isinstance(v, str) and v in known for v in value):
            words = ", ".join(sorted(known))
            raise ConfigError(f"'{key}': a list of {count} is expected, each one of {words}")
        return list(value)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list of ``count`` truth values; None where absent or where it is a number."""
        key, value = self.find(name)
        if not isinstance(value, list):
            return None
        if len(value) != count:
            raise ConfigError(f"'{key}' lists {len(value)} layers; the model has {count}")
        if any(v not in (0, 1) for v in value):
            raise ConfigError(f"'{key}': a list of true or false is expected")
        return [bool(v) for v in value]

    def numbers(
        self,
        name: str,
        count: int,
        default: float = REQUIRED,
        *,
        low: float = 0.0,
        high: float = 1e9,
    ) -> list[float]:
        """A finite number for each of ``count`` layers: one for all, or a list."""
        key, value = self.find(name)
        if isinstance(value, list):
            if len(value) < count:
                raise ConfigError(f"'{key}' lists {len(value)} numbers for {count} layers")
            return [real(key, v, low, high) for v in value[:count]]
        return [self._or(key, default) if value is None else real(key, value, low, high)] * count

    def integer(
        self, name: str, default: int = REQUIRED, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        """A whole number in ``low .. high``. A list (one a layer) must repeat one number."""
        key, value = self.find(name)
        if isinstance(value, list) and value:
            if any(v != value[0] for v in value):
                raise ConfigError(f"'{key}' differs from layer to layer: this is not supported")
            value = value[0]
        return self._or(key, default) if value is None else whole(key, value, low, high)

    def integers(
        self, name: str, count: int, default: int = REQUIRED, *, high: int = 1 << 31
    ) -> list[int]:
        """``count`` whole numbers, one a layer; where the file has one it is for all. 0 says that
        a layer has none."""
        key, value = self.find(name)
        if not isinstance(value, list):
            one = self._or(key, default) if value is None else whole(key, value, 0, high)
            return [one] * count
        if len(value) != count:
            raise ConfigError(f"'{key}' lists {len(value)} layers; the model has {count}")
        return [whole(key, v, 0, high) for v in value]

    def number(
        self, name: str, default: float = REQUIRED, *, low: float = 0.0, high: float = 1e9
    ) -> float:
        """A finite number in ``low .. high``."""
        key, value = self.find(name)
        return self._or(key, default) if value is None else real(key, value, low, high)

    def flag(self, name: str, default: bool = REQUIRED) -> bool:
        """True or false."""
        key, value = self.find(name)
        if value is None:
            return self._or(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"'{key}' is {shown(value)}: true or false is expected")
        return value

    def text(self, name: str, default: str = REQUIRED) -> str:
        """A string."""
        key, value = self.find(name)
        if value is None:
            return self._or(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"'{key}' is {shown(value)}: a string is expected")
        return value

    @staticmethod
    def _or(key: str, default: _T) -> _T:
        if default is REQUIRED:
            raise ConfigError(f"'{key}' is missing: without it the model cannot be built")
        return default


def architecture(file: ModelFile) -> str:
    """The name under which the file's architecture is looked up, empty where there is none.

    Of a model that also sees or hears it is that of its text part.
    """
    if file.kind == "gguf":
        name = file.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""
    names = file.metadata.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        name = file.metadata.get("model_type")
    return text_parts.family(name, file.metadata) if isinstance(name, str) else ""


def several_senses(file: ModelFile) -> bool:
    """Whether a directory is of a model that also sees or hears."""
    return file.kind == "huggingface" and text_parts.several_senses(file.metadata)


# What a GGUF file says in other words, or counts otherwise, than config.json.
_OTHERWISE = ("context", "window", "window_pattern", "rope_layers", "next_token_layers")
_REAL = ("eps", "softcap", "scale", "alibi", "clamp")


def mapped_keys(keys: Keys) -> dict[str, Any]:
    """The hyperparameters that config.json states and GGUF has a key for, without the prefix of the
    architecture, as a GGUF writer takes them. Positions are left to `rope.gguf_scaling`."""
    found: dict[str, Any] = {}
    for name, (gguf, _) in _KEYS.items():
        key, value = keys.find(name)
        if gguf is None or value is None or name in _OTHERWISE or name.startswith("rope_"):
            continue
        if name == "layer_norm_eps" and key == "rms_norm_eps":
            continue
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, (bool, int, float)) for v in values):
            continue
        if all(isinstance(v, bool) for v in values):
            type: Any = np.bool_
        elif any(isinstance(v, float) for v in values) or name.endswith(_REAL):
            type = np.float32
            most = float(np.finfo(type).max)
            for v in values:
                real(key, float(v), -most, most)
        else:
            type = np.uint32
            for v in values:
                whole(key, v, 0, (1 << 32) - 1)
        array = np.array(values, type)
        found[gguf] = array if isinstance(value, list) else array[0]
    return found


def quantization_method(file: ModelFile) -> object:
    """What config.json says of how its weights were quantised, None where it says nothing."""
    stated = file.metadata.get("quantization_config") if file.kind == "huggingface" else None
    return stated.get("quant_method") or "" if isinstance(stated, Mapping) else stated


def mentions(file: ModelFile, key: str) -> bool:
    """Whether config.json has a key, at whatever depth."""
    return file.kind == "huggingface" and _mentions(file.metadata, key)


def _mentions(table: object, key: str) -> bool:
    return isinstance(table, Mapping) and (
        key in table or any(_mentions(value, key) for value in table.values())
    )


def whole(key: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int in ``low .. high``, or ConfigError that names ``key``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value):
        raise ConfigError(f"'{key}' is {shown(value)}: a whole number is expected")
    if not low <= value <= high:
        raise ConfigError(f"'{key}' is {shown(value)}: from {low} to {high} is expected")
    return int(value)


def real(key: str, value: Any, low: float, high: float) -> float:
    """``value`` as a finite float in ``low .. high``, or ConfigError that names ``key``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"'{key}' is {shown(value)}: a number is expected")
    if not low <= value <= high:
        raise ConfigError(f"'{key}' is {shown(value)}: from {low:g} to {high:g} is expected")
    return float(value)
