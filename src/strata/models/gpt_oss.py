"""gpt-oss: attention with sinks and windows in turn, and experts with biases and a clamped SwiGLU,
weighed by a softmax of the chosen (OpenAI's model card of gpt-oss-120b and gpt-oss-20b)."""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

_LIMIT = 7.0
"""Of gates and ups before they are multiplied."""


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a gpt-oss file."""
    c = read_config(file, architecture, context, experts=True)
    c = decoder.with_windows(c, c.keys.integer("window", 128), 2)
    m = experts.read_mixture(c)
    if m is None:
        raise ConfigError(f"'{c.keys.find('experts')[0]}' is missing: gpt-oss has experts")
    chosen = {"scoring": "none", "softmax_chosen": True, "renormalise": False}
    m = replace(
        m,
        shared=0,
        layers=(True,) * c.layers,
        attrs={**m.attrs, **chosen, "clamp": "oai", "limit": _LIMIT},
    )
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(
            c, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"
        ),
        **decoder.attention_tensors(c, bias=True, out_bias=True),
        "blk.{i}.attn_sinks.weight": Tensor("{p}layers.{i}.self_attn.sinks", (c.heads,)),
        **experts.mixture_tensors(c, m, bias=True),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    rope, eps = read_rope(c, "neox"), decoder.rms_eps(c)

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        sinks = f"blk.{i}.attn_sinks.weight"
        x = b.add(x, decoder.attention(b, c, catalog, h, i, rope=rope, sinks=sinks))
        h = b.rms_norm(x, f"blk.{i}.post_attention_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i, scaled=False))

    return decoder.normed(c, catalog, layer, eps)
