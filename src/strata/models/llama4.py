"""Llama 4 (its language model): attention within chunks of 8192 positions, every fourth layer over
all of them without rotation, and experts whose weights multiply what goes into them.

Sources: Meta's model card of Llama 4, and iRoPE's temperature of late positions as llama.cpp and
transformers apply it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Builder, Model

_CHUNK = 8192
_TEMPERATURE = 0.1
"""How fast scores of layers without rotation grow with the logarithm of the chunk's number."""
_MAVERICK = 128
"""The experts of the one model that has no norms of q and k."""


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Llama 4 file."""
    c = read_config(file, architecture, context, experts=True)
    # A file may say 0: nothing is cut into chunks, and all layers are rotated.
    chunk = min(c.keys.integer("window", _CHUNK, low=0), 1) * _CHUNK
    c = decoder.with_windows(c, chunk, 4)
    m = experts.read_mixture(
        c, scoring="sigmoid", shared=c.keys.integer("expert_ffn"), select="logits", weigh_input=True
    )
    if m is not None:
        step = c.keys.integer("expert_step", low=0)
        m = replace(m, layers=tuple(step > 0 and (i + 1) % step == 0 for i in range(c.layers)))
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **experts.mixture_tensors(c, m),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "interleaved", factors=decoder.rope_factors(c, catalog))
    eps = decoder.rms_eps(c)

    def prepared(b: Builder, x: str, i: int) -> str:
        """A query or key with its position."""
        x = decoder.rotate(b, c, x, rope)
        return x if m and m.experts == _MAVERICK else b.rms_norm(x, None, eps, c.head_dim)

    def attend(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}.attn_"
        with b.unit("attention"):
            q, k, v = (decoder.product(b, catalog, x, f"{name}{p}") for p in "qkv")
        if not chunk or (i + 1) % 4:
            q, k = prepared(b, q, i), prepared(b, k, i)
        else:
            q = b.position_scale(q, _CHUNK, _TEMPERATURE, 1.0)
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
