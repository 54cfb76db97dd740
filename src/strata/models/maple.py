"""Maple: Qwen3's layers with experts whose gates and ups are bounded; only layers with a sliding
window are rotated."""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.rope import read_local_rope
from strata.models.tensors import Catalog
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Maple file."""
    c = read_config(file, architecture, context, experts=True)
    c = decoder.with_windows(c, c.keys.integer("window"), 1)
    m = experts.read_mixture(c, renormalise=True, shared=0, scaled=False)
    m = m and replace(m, layers=(True,) * c.layers)
    limits = experts.read_limits(c)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        **experts.mixture_tensors(c, m),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    local, eps = read_local_rope(c, "neox", scaled=True), decoder.rms_eps(c)

    def attend(b: Builder, x: str, i: int) -> str:
        rope = local if c.windows[i] else None
        return decoder.attention(b, c, catalog, x, i, rope=rope, norm_eps=eps)

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if m is None:
            return decoder.gated(b, catalog, x, i, "silu")
        return experts.routed(b, catalog, m, x, i, scaled=False, **limits[i])

    return decoder.pre_norm_model(c, catalog, None, attend=attend, feed_forward=feed_forward)
