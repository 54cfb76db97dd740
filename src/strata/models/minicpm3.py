"""MiniCPM 3: latent attention whose keys and values are kept for every head, and the scales of
MiniCPM on embeddings, residuals and the head (arXiv:2404.06395)."""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, latent
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiniCPM 3 file; GGUF files do not state the scales."""
    c, a = latent.read_latent(read_config(file, architecture, context, latent=True), absorbed=False)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **latent.latent_tensors(c, a),
        **decoder.gated_tensors(c),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    eps = decoder.rms_eps(c)
    residual = c.keys.number("depth_scale", 1.4) / math.sqrt(c.layers)

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        h = latent.attention(b, c, catalog, a, h, i, rope=rope, eps=eps)
        x = b.add(x, b.scale(h, residual))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        return b.add(x, b.scale(decoder.gated(b, catalog, h, i, "silu"), residual))

    def logits(b: Builder, x: str) -> str:
        x = b.rms_norm(x, "output_norm.weight", eps)
        return decoder.head(b, c, b.scale(x, c.keys.integer("base_width", 256) / c.width))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", c.keys.number("embed_scale", 12.0)),
        layer=layer,
        head=logits,
        state=[a.state(c.heads)] * c.layers,
    )
