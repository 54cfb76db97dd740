"""Tiny GGUF files of families with recurrent layers or convolutions with llama.cpp's logits.

    python tools/make_tiny_hybrids.py DIRECTORY [NAME ...] [--llama-cpp SOURCE BUILD]

DIRECTORY/NAME.gguf is written for each; with the folders of llama.cpp's source and of its build,
llama.cpp's logits of them go to tests/goldens/hybrids.npz.

Keys and shapes are written down here as llama.cpp reads them, so that what a family reads is held
against another source. Weights come from a counter-based generator keyed by the tensor's name.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from make_tiny_models import weight
from make_tiny_variants import compile_program, logits_of_llama_cpp
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.quant import by_name

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "hybrids.npz"
VOCABULARY, TOKENS = 48, 24
# Positions whose logits are kept.
ROWS = [0, 1, 5, 17, 23]
_WIDTH, _FFN, _LAYERS, _HEADS, _DIM, _RANK = 32, 48, 4, 4, 8, 32
# RWKV's: heads of 64 are what llama.cpp can compute of RWKV-7 on every machine, and two of them.
_WIDE = 128
_EXPERTS, _EXPERT_FFN = 6, 24

Shapes = dict[str, tuple[int, ...]]

_KEYS: Mapping[str, Any] = {
    "block_count": _LAYERS,
    "context_length": 256,
    "embedding_length": _WIDTH,
    "feed_forward_length": _FFN,
    "attention.head_count": _HEADS,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": VOCABULARY,
}
_MIXTURE: Mapping[str, Any] = {
    "expert_count": _EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": _EXPERT_FFN,
}
_LATENT: Mapping[str, Any] = {
    "attention.head_count_kv": [0, 1] * (_LAYERS // 2),
    "attention.kv_lora_rank": _RANK,
    "attention.key_length": _RANK + 8,
    "attention.value_length": _RANK,
    "attention.key_length_mla": 40,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
    "kda.head_dim": _DIM,
    "ssm.conv_kernel": 4,
    "expert_gating_func": 2,
    "expert_shared_count": 1,
    "expert_weights_scale": 1.5,
    "leading_dense_block_count": 1,
}
_INNER = _HEADS * _DIM


def _frame(width: int) -> Shapes:
    table = (VOCABULARY, width)
    return {"token_embd.weight": table, "output.weight": table, "output_norm.weight": (width,)}


def _norms(*names: str) -> Shapes:
    return {f"{name}.weight": (_WIDTH,) for name in names}


def _feed_forward(
    prefix: str = "ffn_", suffix: str = "", ffn: int = _FFN, width: int = _WIDTH
) -> Shapes:
    return {
        f"{prefix}gate{suffix}.weight": (ffn, width),
        f"{prefix}up{suffix}.weight": (ffn, width),
        f"{prefix}down{suffix}.weight": (width, ffn),
    }


def _experts(width: int = _WIDTH) -> Shapes:
    return {
        "ffn_gate_inp.weight": (_EXPERTS, _WIDTH),
        "ffn_gate_exps.weight": (_EXPERTS, _EXPERT_FFN, width),
        "ffn_up_exps.weight": (_EXPERTS, _EXPERT_FFN, width),
        "ffn_down_exps.weight": (_EXPERTS, width, _EXPERT_FFN),
    }


def _attention(heads: int = _HEADS, kv: int = 2, dim: int = _DIM, queries: int = 1) -> Shapes:
    return {
        "attn_q.weight": (queries * heads * dim, _WIDTH),
        "attn_k.weight": (kv * dim, _WIDTH),
        "attn_v.weight": (kv * dim, _WIDTH),
        "attn_output.weight": (_WIDTH, heads * dim),
    }


def _qwen3next(i: int) -> Shapes:
    keys, values = 2 * _DIM, 4 * _DIM
    delta: Shapes = {
        "ssm_ba.weight": (8, _WIDTH),
        "ssm_conv1d.weight": (2 * keys + values, 4),
        "ssm_dt.bias": (4,),
        "ssm_a": (4,),
        "ssm_norm.weight": (_DIM,),
        "ssm_out.weight": (_WIDTH, values),
    }
    # Older files have one product, newer two.
    if i == 0:
        delta["attn_qkv.weight"] = (2 * keys + values, _WIDTH)
        delta["attn_gate.weight"] = (values, _WIDTH)
    else:
        delta["ssm_in.weight"] = (2 * keys + 2 * values, _WIDTH)
    heads: Shapes = {"attn_q_norm.weight": (_DIM,), "attn_k_norm.weight": (_DIM,)}
    return {
        **_norms("attn_norm", "post_attention_norm"),
        **({**_attention(queries=2), **heads} if i % 2 else delta),
        **_experts(),
        **_feed_forward(suffix="_shexp", ffn=16),
        "ffn_gate_inp_shexp.weight": (_WIDTH,),
    }


_DECAYS: Shapes = {"ssm_a": (_HEADS,)}


def _kda(decay: tuple[str, ...], gate: tuple[str, ...]) -> Shapes:
    out: Shapes = {
        "attn_output.weight": (_WIDTH, _INNER),
        "ssm_beta.weight": (_HEADS, _WIDTH),
        "ssm_a": (_HEADS, 1),
        "ssm_dt.bias": (_INNER,),
        "ssm_norm.weight": (_DIM,),
    }
    for part in "qkv":
        out[f"attn_{part}.weight"] = (_INNER, _WIDTH)
        out[f"ssm_conv1d_{part}.weight"] = (1, _INNER, 1, 4)
    for products in (decay, gate):
        widths = [_WIDTH, *(_DIM,) * (len(products) - 1), _INNER]
        for n, product in enumerate(products):
            out[f"ssm_{product}.weight"] = (widths[n + 1], widths[n])
    return out


def _latent(q_rank: int = 0) -> Shapes:
    queries: Shapes = {"attn_q.weight": (_HEADS * 40, _WIDTH)}
    if q_rank:
        queries = {
            "attn_q_a.weight": (q_rank, _WIDTH),
            "attn_q_a_norm.weight": (q_rank,),
            "attn_q_b.weight": (_HEADS * 40, q_rank),
        }
    return {
        **queries,
        "attn_kv_a_mqa.weight": (_RANK + 8, _WIDTH),
        "attn_kv_a_norm.weight": (_RANK,),
        "attn_k_b.weight": (_HEADS, _RANK, 32),
        "attn_v_b.weight": (_HEADS, 16, _RANK),
        "attn_output.weight": (_WIDTH, _HEADS * 16),
    }


def _routed(i: int) -> Shapes:
    if i == 0:
        return _feed_forward()
    shared = _feed_forward(suffix="_shexp", ffn=_EXPERT_FFN)
    return {**_experts(), **shared, "exp_probs_b.bias": (_EXPERTS,)}


def _kimi_linear(i: int) -> Shapes:
    mixer = _latent() if i % 2 else _kda(("f_a", "f_b"), ("g_a", "g_b"))
    return {**_norms("attn_norm", "ffn_norm"), **mixer, **_routed(i)}


def _kimi_k3(i: int) -> Shapes:
    gate: Shapes = {"attn_gate.weight": (_HEADS * 16, _WIDTH)}
    mixer = {**_latent(24), **gate} if i % 2 else {**_kda(("f_a", "f_b"), ("g",)), **_DECAYS}
    routed = _feed_forward()
    if i:
        routed = {
            **_routed(i),
            "ffn_gate_exps.weight": (_EXPERTS, _EXPERT_FFN, 16),
            "ffn_up_exps.weight": (_EXPERTS, _EXPERT_FFN, 16),
            "ffn_down_exps.weight": (_EXPERTS, 16, _EXPERT_FFN),
            "ffn_routed_down.weight": (16, _WIDTH),
            "ffn_routed_up.weight": (_WIDTH, 16),
            "ffn_routed_norm.weight": (16,),
        }
    scores = _norms("attn_res_score", "ffn_res_score")
    return {**_norms("attn_norm", "ffn_norm"), **mixer, **routed, **scores}


def _glm5_next(i: int) -> Shapes:
    indexer: Shapes = {
        "indexer.k_norm.weight": (8,),
        "indexer.k_norm.bias": (8,),
        "indexer.proj.weight": (2, _WIDTH),
        "indexer.attn_k.weight": (8, _WIDTH),
        "indexer.attn_q_b.weight": (16, 24),
        "indexer_compressor_gate.weight": (8, _WIDTH),
        "indexer_compressor_ape.weight": (4, 8),
    }
    bare: Shapes = {
        **_latent(24),
        "attn_kv_a_mqa.weight": (_RANK, _WIDTH),
        "attn_q_b.weight": (_HEADS * 32, 24),
    }
    mixer = {**_kda(("f_a", "f_b"), ("g_a", "g_b")), **_DECAYS}
    streams: Shapes = {}
    for half in ("attn", "ffn"):
        streams[f"hc_{half}_fn.weight"] = (24, 4 * _WIDTH)
        streams[f"hc_{half}_base.weight"] = (24,)
        streams[f"hc_{half}_scale.weight"] = (3,)
    attending = {**bare, **indexer} if i % 2 else mixer
    return {**_norms("attn_norm", "ffn_norm"), **attending, **_routed(i), **streams}


def _ling(i: int) -> Shapes:
    gate: Shapes = {"attn_gate.weight": (_HEADS, _WIDTH)}
    mixer = {**_latent(24), **gate} if i % 2 else _kda(("f_a",), ("g_a",))
    return {**_norms("attn_norm", "ffn_norm"), **mixer, **_routed(i)}


def _minimax(i: int) -> Shapes:
    lightning: Shapes = {
        "attn_qkv.weight": (3 * _INNER, _WIDTH),
        "attn_gate.weight": (_INNER, _WIDTH),
        "attn_norm_2.weight": (_INNER,),
        "attn_output.weight": (_WIDTH, _INNER),
    }
    mixer = _attention() if i % 2 else lightning
    return {**_norms("attn_norm", "ffn_norm"), **mixer, **_experts()}


def _qwen35(i: int) -> Shapes:
    keys, values = 2 * _DIM, 4 * _DIM
    delta: Shapes = {
        "attn_qkv.weight": (2 * keys + values, _WIDTH),
        "attn_gate.weight": (values, _WIDTH),
        "ssm_alpha.weight": (4, _WIDTH),
        "ssm_beta.weight": (4, _WIDTH),
        "ssm_conv1d.weight": (2 * keys + values, 4),
        "ssm_dt.bias": (4,),
        "ssm_a": (4,),
        "ssm_norm.weight": (_DIM,),
        "ssm_out.weight": (_WIDTH, values),
    }
    heads: Shapes = {"attn_q_norm.weight": (_DIM,), "attn_k_norm.weight": (_DIM,)}
    return {
        **_norms("attn_norm", "post_attention_norm"),
        **({**_attention(queries=2), **heads} if i % 2 else delta),
        **_experts(),
        **_feed_forward(suffix="_shexp", ffn=16),
        "ffn_gate_inp_shexp.weight": (_WIDTH,),
    }


def _streams(name: str) -> Shapes:
    return {
        f"{name}_norm.weight": (4, _WIDTH),
        f"{name}_down.weight": (8, 4 * _WIDTH),
        f"{name}_up.weight": (4 * _WIDTH, 8),
    }


def _qwen4exp(i: int) -> Shapes:
    own = {key: shape for key, shape in _qwen35(i).items() if shape != (_WIDTH,)}
    indexer: Shapes = {
        "indexer.q_proj.weight": (16, _WIDTH),
        "indexer.k_proj.weight": (8, _WIDTH),
        "indexer.q_norm.weight": (8,),
        "indexer.k_norm.weight": (8,),
    }
    table: Shapes = {
        "ple_key.weight": (4 * _WIDTH, 4 * 8),
        "ple_value.weight": (_WIDTH, 4 * 8),
        **{f"ple_norm_{part}.weight": (4, _WIDTH) for part in ("key", "query", "conv")},
        "ple_conv1d.weight": (4 * _WIDTH, 4),
    }
    return {
        **own,
        "ffn_gate_inp_shexp.weight": (_WIDTH,),
        **_streams("hc_attn"),
        "hc_attn_inject.weight": (4, 4 * _WIDTH),
        **_streams("hc_ffn"),
        "hc_ffn_inject.weight": (4, 4 * _WIDTH),
        **(indexer if i % 2 else {}),
        **(table if i == 2 else {}),
    }


def _lfm2(i: int) -> Shapes:
    heads: Shapes = {"attn_q_norm.weight": (_DIM,), "attn_k_norm.weight": (_DIM,)}
    convolution: Shapes = {
        "shortconv.conv.weight": (_WIDTH, 3),
        "shortconv.in_proj.weight": (3 * _WIDTH, _WIDTH),
        "shortconv.out_proj.weight": (_WIDTH, _WIDTH),
    }
    routed: Shapes = {**_experts(), "exp_probs_b.bias": (_EXPERTS,)}
    return {
        **_norms("attn_norm", "ffn_norm"),
        **({**_attention(), **heads} if i % 2 else convolution),
        **(routed if i else _feed_forward()),
    }


def _nemotron(i: int) -> Shapes:
    out: Shapes = _norms("attn_norm")
    if i == 0:
        # 32 columns of the mixer with a gate, two groups of B and C of 8 states, 4 steps.
        return {
            **out,
            "ssm_in.weight": (32 + 64 + 4, _WIDTH),
            "ssm_conv1d.weight": (64, 4),
            "ssm_conv1d.bias": (64,),
            "ssm_dt.bias": (4,),
            "ssm_a": (4, 1),
            "ssm_d": (4, 1),
            "ssm_norm.weight": (2, 16),
            "ssm_out.weight": (_WIDTH, 32),
        }
    if i == 1:
        return {**out, **_attention()}
    routed: Shapes = {
        "ffn_gate_inp.weight": (_EXPERTS, _WIDTH),
        "exp_probs_b.bias": (_EXPERTS,),
        "ffn_up_exps.weight": (_EXPERTS, _EXPERT_FFN, 16),
        "ffn_down_exps.weight": (_EXPERTS, 16, _EXPERT_FFN),
        "ffn_latent_down.weight": (16, _WIDTH),
        "ffn_latent_up.weight": (_WIDTH, 16),
        "ffn_up_shexp.weight": (40, _WIDTH),
        "ffn_down_shexp.weight": (_WIDTH, 40),
    }
    return {**out, **routed}


def _vectors(*names: str) -> Shapes:
    return {f"{name}.weight": (_WIDE,) for name in names}


def _both(*names: str) -> Shapes:
    return {f"{name}.{kind}": (_WIDE,) for name in names for kind in ("weight", "bias")}


def _squares(*names: str) -> Shapes:
    return {f"time_mix_{name}.weight": (_WIDE, _WIDE) for name in names}


def _channel_mix(*lerps: str) -> Shapes:
    return {
        **{f"channel_mix_lerp_{part}.weight": (1, 1, _WIDE) for part in lerps},
        "channel_mix_key.weight": (_FFN, _WIDE),
        "channel_mix_value.weight": (_WIDE, _FFN),
    }


def _time_mix_6() -> Shapes:
    return {
        **_squares("receptance", "gate", "output"),
        "time_mix_lerp_x.weight": (1, 1, _WIDE),
        "time_mix_lerp_fused.weight": (5, 1, 1, _WIDE),
        "time_mix_w1.weight": (5 * _RANK, _WIDE),
        "time_mix_w2.weight": (5, _WIDE, _RANK),
        "time_mix_decay.weight": (_WIDE,),
        "time_mix_decay_w1.weight": (24, _WIDE),
        "time_mix_decay_w2.weight": (_WIDE, 24),
    }


def _rwkv6(i: int) -> Shapes:
    out: Shapes = {
        **_both("attn_norm", "attn_norm_2", "time_mix_ln"),
        **_time_mix_6(),
        **_squares("key", "value"),
        **_channel_mix("k", "r"),
        "channel_mix_receptance.weight": (_WIDE, _WIDE),
        "time_mix_first.weight": (4, 32),
    }
    if i == 1:
        # Older files keep what is mixed apart.
        del out["time_mix_lerp_fused.weight"]
        out |= {f"time_mix_lerp_{part}.weight": (1, 1, _WIDE) for part in "wkvrg"}
    return out


def _qrwkv6(i: int) -> Shapes:
    del i
    out: Shapes = {
        **_vectors("attn_norm", "ffn_norm"),
        **_time_mix_6(),
        **_feed_forward(width=_WIDE),
    }
    for part, rows in (("receptance", _WIDE), ("key", 64), ("value", 64)):
        out[f"time_mix_{part}.weight"] = (rows, _WIDE)
        out[f"time_mix_{part}.bias"] = (rows,)
    return out


def _time_mix_7(i: int, gate: int) -> Shapes:
    out: Shapes = {
        **_squares("receptance", "key", "value", "output"),
        **_vectors(*(f"time_mix_{part}" for part in ("w0", "a0", "v0", "k_k", "k_a", "r_k"))),
        "time_mix_lerp_fused.weight": (6 if gate else 5, 1, 1, _WIDE),
    }
    # llama.cpp wants the first layer to have these of another size, and does not use them.
    for part, rank in (("w", 16), ("a", 24), ("v", 20 if i else 24), ("g", gate)):
        if rank:
            out[f"time_mix_{part}1.weight"] = (rank, _WIDE)
            out[f"time_mix_{part}2.weight"] = (_WIDE, rank)
    return out


def _rwkv7(i: int) -> Shapes:
    norms = _both("attn_norm", "attn_norm_2", "time_mix_ln")
    return {**norms, **_time_mix_7(i, 28), **_channel_mix("k")}


def _arwkv7(i: int) -> Shapes:
    return {**_vectors("attn_norm", "ffn_norm"), **_time_mix_7(i, 0), **_feed_forward(width=_WIDE)}


_WKV: Mapping[str, Any] = {
    "embedding_length": _WIDE,
    "attention.head_count": 0,
    "wkv.head_size": 32,
    "time_mix_extra_dim": _RANK,
    "time_decay_extra_dim": 24,
    "attention.decay_lora_rank": 16,
    "attention.iclr_lora_rank": 24,
    "attention.value_residual_mix_lora_rank": 20,
}
_NORM_OF_TABLE: Shapes = {**_both("token_embd_norm"), "output_norm.bias": (_WIDE,)}


_INTERVAL: Mapping[str, Any] = {
    "attention.head_count_kv": 2,
    "attention.key_length": _DIM,
    "attention.value_length": _DIM,
    "rope.dimension_count": 4,
    "full_attention_interval": 2,
}
_DELTA: Mapping[str, Any] = {
    "ssm.inner_size": 4 * _DIM,
    "ssm.state_size": _DIM,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "ssm.conv_kernel": 4,
    "expert_shared_feed_forward_length": 16,
}
_BOUNDED: Mapping[str, Any] = {
    "attention.q_lora_rank": 24,
    "kda.gate_lower_bound": -5.0,
    "expert_weights_norm": True,
}
_CLAMPED: Mapping[str, Any] = {
    "swiglu_clamp_exp": [0.0, 0.4, 0.0, 0.6],
    "swiglu_clamp_shexp": [0.0, 0.0, 0.5, 0.3],
}

_SHORT: Mapping[str, Any] = {
    "attention.head_count_kv": [0, 2] * (_LAYERS // 2),
    "shortconv.l_cache": 3,
    "leading_dense_block_count": 1,
    "expert_gating_func": 2,
}

# By `general.architecture`: its own keys, and the shapes of layer i and around the layers (of no
# axis: it has none of what others have).
_FAMILIES: Mapping[str, tuple[Mapping[str, Any], Callable[[int], Shapes], Shapes]] = {
    "qwen3next": ({**_MIXTURE, **_INTERVAL, **_DELTA}, _qwen3next, {}),
    "qwen35moe": (
        {**_MIXTURE, **_INTERVAL, **_DELTA, "rope.dimension_sections": [1, 1, 0, 0]},
        _qwen35,
        {},
    ),
    "qwen4exp": (
        {
            **_MIXTURE,
            **_INTERVAL,
            **_DELTA,
            "rope.dimension_sections": [1, 1, 0, 0],
            "hyper_connection.count": 4,
            "hyper_connection.low_rank": 8,
            "attention.indexer.head_count": 2,
            "attention.indexer.key_length": 8,
            "attention.indexer.top_k": 256,
            "attention.compress_ratios": [0, 4] * (_LAYERS // 2),
            "embedding_length_per_layer_input": 8,
            "ple.layers": [2],
            "ple.ngram_size": 3,
            "ple.heads_per_ngram": 2,
            "ple.conv_kernel": 4,
            # The 11th token.
            "ple.eos_token_id": 41,
            "ple.layer_multipliers": np.array([36028797018963913, 27, 1125899906842597], np.uint64),
            "ple.head_offsets": np.array([0, 17, 36, 59], np.uint64),
            "ple.head_vocab_sizes": np.array([17, 19, 23, 29], np.uint64),
        },
        _qwen4exp,
        {
            "output_norm.weight": (),
            **_streams("output_hc"),
            "per_layer_token_embd.weight": (96, 8),
        },
    ),
    "lfm2moe": (
        {**_MIXTURE, **_SHORT},
        _lfm2,
        {"token_embd_norm.weight": (_WIDTH,), "output_norm.weight": ()},
    ),
    "kimi-linear": ({**_MIXTURE, **_LATENT}, _kimi_linear, {}),
    "bailingmoe3": ({**_MIXTURE, **_LATENT, **_BOUNDED, **_CLAMPED}, _ling, {}),
    "kimi-k3": (
        {
            **_MIXTURE,
            **_LATENT,
            **_BOUNDED,
            "expert_latent_length": 16,
            "activation.situ_beta": 2.0,
            "activation.situ_linear_beta": 1.5,
            "attn_res.block_size": 2,
        },
        _kimi_k3,
        {"output_res_score.weight": (_WIDTH,)},
    ),
    "glm5-next": (
        {
            **_MIXTURE,
            **_LATENT,
            **_BOUNDED,
            **_CLAMPED,
            "attention.key_length": _RANK,
            "attention.key_length_mla": 32,
            "rope.dimension_count": 0,
            "attention.indexer.head_count": 2,
            "attention.indexer.key_length": 8,
            "attention.indexer.top_k": 256,
            "attention.indexer.kpool": 4,
            "attention.indexer.kpool_select_tail": True,
            "hyper_connection.count": 4,
            "hyper_connection.sinkhorn_iterations": 3,
            "hyper_connection.epsilon": 1e-6,
        },
        _glm5_next,
        {},
    ),
    "minimax-01": (
        {**_MIXTURE, **_INTERVAL, "feed_forward_length": _EXPERT_FFN, "residual_scale": 1.5},
        _minimax,
        {},
    ),
    "nemotron_h_moe": (
        {
            **_MIXTURE,
            "attention.head_count_kv": [0, 2, 0, 0],
            "attention.key_length": _DIM,
            "attention.value_length": _DIM,
            "feed_forward_length": [0, 0, _EXPERT_FFN, _EXPERT_FFN],
            "ssm.inner_size": 32,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 4,
            "ssm.group_count": 2,
            "ssm.conv_kernel": 4,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 40,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "moe_latent_size": 16,
        },
        _nemotron,
        {},
    ),
    "rwkv6": ({**_WKV, "rescale_every_n_layers": 2}, _rwkv6, _NORM_OF_TABLE),
    "rwkv6qwen2": (
        {**_WKV, "attention.head_count_kv": 2, "token_shift_count": 1},
        _qrwkv6,
        {},
    ),
    "rwkv7": (
        {**_WKV, "wkv.head_size": 64, "attention.gate_lora_rank": 28},
        _rwkv7,
        _NORM_OF_TABLE,
    ),
    "arwkv7": ({**_WKV, "wkv.head_size": 64, "token_shift_count": 1}, _arwkv7, {}),
}


def names() -> list[str]:
    """All of them."""
    return sorted(_FAMILIES)


def metadata(name: str, **changed: Any) -> dict[str, Any]:
    """The header's keys; those of ``changed`` are without the architecture, ... removes one."""
    keys = {**_KEYS, **_FAMILIES[name][0], **changed}
    tokens = [f"tok_{i}" for i in range(VOCABULARY)]
    return {
        "general.architecture": name,
        **{f"{name}.{key}": value for key, value in keys.items() if value is not ...},
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
        # The first stands for what is not known, the next two begin and end texts.
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * (VOCABULARY - 3)],
    }


def shapes(name: str) -> Shapes:
    """Of all tensors, rows first."""
    keys, layer, around = _FAMILIES[name]
    out = {**_frame(keys.get("embedding_length", _WIDTH)), **around}
    for i in range(_LAYERS):
        out |= {f"blk.{i}.{key}": shape for key, shape in layer(i).items()}
    return {key: shape for key, shape in out.items() if shape}


def array(name: str, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The tensor ``key`` of a family."""
    made = weight(f"{name}.{key}", (shape[0], shape[-1]) if len(shape) > 2 else shape)
    if len(shape) > 2:
        flat = weight(f"{name}.{key}", (int(np.prod(shape[:-1])), shape[-1]))
        made = flat.reshape(shape)
    if key.endswith("ssm_a"):
        # As converters leave it: what makes a decay of it, Ling's rather than the others', is
        # positive.
        made = np.abs(made) + np.float32(0.3)
        made = made if name == "bailingmoe3" else -made
    return made


def write(path: Path, name: str, tokenizer: str = "test", **changed: Any) -> Path:
    """Write the tiny file of a family. With "llama" for a ``tokenizer`` its tokens are texts."""
    f32 = by_name("F32")
    sources = [
        TensorSource.of(key, shape, f32, array(name, key, shape))
        for key, shape in shapes(name).items()
    ]
    write_gguf(path, {**metadata(name, **changed), "tokenizer.ggml.model": tokenizer}, sources)
    return path


def tokens() -> list[int]:
    """The sequence, as llamacpp_logits.cpp makes it."""
    return [(7 + 13 * i) % VOCABULARY for i in range(TOKENS)]


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--llama-cpp", nargs=2, type=Path, metavar=("SOURCE", "BUILD"))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    files = {
        name: write(options.directory / f"{name}.gguf", name) for name in options.names or names()
    }
    if options.llama_cpp is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        program = compile_program(*options.llama_cpp, Path(scratch))
        found = dict(np.load(GOLDENS)) if GOLDENS.exists() else {}
        for name, path in files.items():
            found[name] = logits_of_llama_cpp(program, path, TOKENS)[ROWS]
    np.savez_compressed(GOLDENS, **found)


if __name__ == "__main__":
    main()
