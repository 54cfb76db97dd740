"""MiMo-V2 (Xiaomi): keys and values of different widths, windows with sinks and KV heads of their
own, experts that a sigmoid weighs; which layers have experts the file's routers tell.

Blocks that predict further tokens are left out.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.composed_tensors import layer_config
from strata.models.config import read_config
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model, PagedKV


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiMo-V2 file."""
    c = read_config(file, architecture, context, experts=True, uneven=True, values=True)
    c = decoder.with_windows(c, c.keys.integer("window"), 1)
    layers = [layer_config(c, i) for i in range(c.layers)]
    c, further = decoder.without_further(c)
    layers = layers[: c.layers]
    m = experts.read_mixture(c, scoring="sigmoid", renormalise=True, shared=0)
    m = experts.where_routed(c, file, m)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        "blk.{i}.attn_sinks.weight": Tensor(None, (c.heads,), optional=True),
        **experts.mixture_tensors(c, m),
    }
    for i, own in enumerate(layers):
        attention = decoder.attention_tensors(own, bias=False, out_bias=False)
        # Not read, nor are the numbers beside the first products.
        kept = {n: t for n, t in attention.items() if n.endswith("weight") or "output.scale" in n}
        tensors |= on_layers(kept, [i])
    unused = (*decoder.harmless(c), further, experts.DENSE, r"blk\.\d+\.attn_\w+\.(bias|scale)")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    full, local = read_rope(c, "neox"), read_local_rope(c, "neox")
    scale = c.keys.number("value_scale", 0.0, high=1e3) or 1.0

    def attend(b: Builder, x: str, i: int) -> str:
        rope = local if c.windows[i] else full
        sinks = decoder.present(catalog, f"blk.{i}.attn_sinks.weight")
        return b.scale(
            decoder.attention(b, layers[i], catalog, x, i, rope=rope, sinks=sinks), scale
        )

    return decoder.pre_norm_model(
        c,
        catalog,
        None,
        attend=attend,
        state=[
            PagedKV(own.kv_heads, own.head_dim, own.v_dim, c.windows[i])
            for i, own in enumerate(layers)
        ],
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i, scaled=False),
    )
