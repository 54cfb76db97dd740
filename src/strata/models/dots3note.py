"""dots.3 Note: latent attention with a gate for each head and a norm of rotated keys, layers with a
sliding window and widths of their own, experts beside a shared one.

Its indexer is left out as in ``deepseek2.py``, and so are blocks that predict further tokens.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, latent
from strata.models.config import MAX_WIDTH, read_config
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a dots.3 Note file."""
    c = read_config(file, architecture, context, experts=True, latent=True, uneven=True)
    c = decoder.with_windows(c, c.keys.integer("window"), 1)
    heads = c.keys.integers("heads", c.layers, high=MAX_WIDTH)
    c, further = decoder.without_further(c)
    c, wide = latent.read_latent(c, absorbed=True)
    local = latent.read_latent(c, absorbed=True, local=True)[1]
    layers = [
        (replace(c, heads=heads[i], kv_heads=heads[i]), local if c.windows[i] else wide)
        for i in range(c.layers)
    ]
    m = experts.read_mixture(c, scoring="sigmoid")
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **experts.mixture_tensors(c, m),
    }
    for i, (own, a) in enumerate(layers):
        attention = {
            **latent.latent_tensors(own, a),
            "blk.{i}.attn_k_norm.weight": Tensor(None, (a.rope,)),
            "blk.{i}.attn_gate.weight": Tensor(None, (own.heads, c.width), unit_axes=True),
        }
        tensors |= on_layers(attention, [i])
    unread = (r"blk\.\d+\.indexer\..*", r"blk\.\d+\.attn_\w+\.scale")
    catalog = Catalog(file, tensors, c.layers, harmless=(*decoder.harmless(c), further, *unread))
    full_rope, local_rope = read_rope(c, "interleaved"), read_local_rope(c, "interleaved")
    eps = decoder.rms_eps(c)

    def attend(b: Builder, x: str, i: int) -> str:
        own, a = layers[i]
        rope = local_rope if c.windows[i] else full_rope
        return latent.attention(
            b, own, catalog, a, x, i, rope=rope, eps=eps, k_norm=True, gated=True
        )

    return decoder.pre_norm_model(
        c,
        catalog,
        None,
        attend=attend,
        state=[a.state(own.heads, c.windows[i]) for i, (own, a) in enumerate(layers)],
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i),
    )
