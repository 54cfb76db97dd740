"""Llama 4 (its language model): attention within chunks of 8192 positions, every fourth layer over
all of them without rotation, and experts whose weights multiply what goes into them.

Sources: Meta's model card of Llama 4, and iRoPE's temperature of late positions as llama.cpp and
transformers apply it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

_CHUNK = 8192
_TEMPERATURE = 0.1
"""How fast scores of layers without rotation grow with the logarithm of the chunk's number."""
_MAVERICK = 128
"""The experts of the one model that has no norms of q and k."""
_ROUTING: dict[str, Any] = {"select": "logits", "weigh_input": True}
_NAMES = experts.HuggingFaceNames("feed_forward", "router", shared="shared_expert")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Llama 4 file."""
    c = read_config(file, architecture, context, experts=True)
    width = c.keys.integer("expert_ffn") if file.kind == "gguf" else c.ffn
    # A file may say 0: nothing is cut into chunks, and all layers are rotated.
    chunk = c.keys.integer("chunk", _CHUNK, low=0)
    if file.kind == "gguf":
        chunk = min(c.keys.integer("window", _CHUNK, low=0), 1) * _CHUNK
    rotated = [not chunk or i > 0 for i in c.keys.integers("rope_layers", c.layers, 1, high=1)]
    if not c.keys.stated("rope_layers"):
        rotated = [not chunk or (i + 1) % 4 > 0 for i in range(c.layers)]
    kinds = c.keys.texts("layer_types", c.layers, {"chunked_attention", "full_attention"})
    in_chunks = rotated if kinds is None else [kind == "chunked_attention" for kind in kinds]
    c = replace(c, windows=tuple(chunk if one else 0 for one in in_chunks))
    m = experts.read_mixture(
        c, scoring="sigmoid", ffn=width, shared=width, names=_NAMES, **_ROUTING
    )
    if m is not None:
        m = replace(m, layers=_routed_layers(c))
    c = replace(c, ffn=c.keys.integer("dense_ffn", c.ffn, high=16 * MAX_WIDTH))
    bias = c.keys.flag("attention_bias", False)
    normed = c.keys.flag("qk_norm", not (m and m.experts == _MAVERICK))
    temperature = _TEMPERATURE if c.keys.flag("temperature", True) else 0.0
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **_feed_forward(experts.mixture_tensors(c, m)),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "interleaved", factors=decoder.rope_factors(c, catalog))
    eps = decoder.rms_eps(c)

    def prepared(b: Builder, x: str) -> str:
        """A query or key with its position."""
        x = decoder.rotate(b, c, x, rope)
        return b.rms_norm(x, None, eps, c.head_dim) if normed else x

    def attend(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}.attn_"
        with b.unit("attention"):
            q, k, v = (decoder.product(b, catalog, x, f"{name}{p}") for p in "qkv")
        if rotated[i]:
            q, k = prepared(b, q), prepared(b, k)
        elif temperature:
            floor = c.keys.number("temperature_floor", _CHUNK, low=1.0)
            scale = c.keys.number("temperature_growth", temperature)
            q = b.position_scale(q, floor, scale, 1.0)
        mixed = b.attention(
            q,
            k,
            v,
            layer=i,
            heads=c.heads,
            kv_heads=c.kv_heads,
            k_dim=c.head_dim,
            v_dim=c.head_dim,
            scale=c.keys.number("attention_scale", 0.0) or 1 / math.sqrt(c.head_dim),
            window=c.windows[i],
            chunked=c.windows[i] > 0,
        )
        with b.unit("attention"):
            return decoder.product(b, catalog, mixed, f"{name}output")

    return decoder.pre_norm_model(
        c,
        catalog,
        rope,
        attend=attend,
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i, scaled=False),
    )


def _routed_layers(c: Config) -> tuple[bool, ...]:
    """Which layers have experts: as config.json lists them, else every so many-th."""
    listed = c.keys.raw("moe_layers") if c.keys.kind == "huggingface" else None
    if listed is None:
        step = c.keys.integer("expert_step", low=0)
        return tuple(step > 0 and (i + 1) % step == 0 for i in range(c.layers))
    if not isinstance(listed, list) or any(i not in range(c.layers) for i in listed):
        raise ConfigError(f"'moe_layers': a list of layers below {c.layers} is expected")
    return tuple(i in listed for i in range(c.layers))


def _feed_forward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the names of Llama 4's directories, experts stacked and as [in, out]."""
    out = {}
    for name, t in tensors.items():
        if "_exps.weight" in name:
            stacked = "{p}layers.{i}.feed_forward.experts.down_proj" if t.part is None else None
            t = replace(t, huggingface=stacked, transform="transpose", apart=True)
        elif t.huggingface is not None:
            t = replace(t, huggingface=t.huggingface.replace(".mlp.", ".feed_forward."))
        out[name] = t
    return out
