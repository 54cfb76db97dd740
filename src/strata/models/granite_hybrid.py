"""Granite 4: Mamba-2 or attention a layer, each with a feed-forward or with experts beside a shared
one, and Granite's scales. Hugging Face files with experts are not read yet.

Source: the GraniteMoeHybrid configuration of transformers.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, llama, state_space
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model

_ATTENTION = {"attention", "full_attention"}
_TYPES = {"mamba", "linear_attention", *_ATTENTION}


def attending(c: Config) -> list[bool]:
    """Which layers have attention."""
    listed = c.keys.texts("layer_types", c.layers, _TYPES)
    if listed is not None:
        return [kind in _ATTENTION for kind in listed]
    return [n > 0 for n in c.keys.integers("kv_heads", c.layers, 0)]


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Granite 4."""
    s, attends = state_space.read_sizes(c, version=2), attending(c)
    ffn = experts.mixture_tensors(c, mixture(c))
    stored = "{p}layers.{i}.shared_mlp."
    if c.keys.kind != "gguf":
        for start, name in ((0, "gate"), (c.ffn, "up")):
            part = Part("", f"{stored}input_linear.weight", start, 2 * c.ffn)
            shape = (c.ffn, c.width)
            ffn[f"blk.{{i}}.ffn_{name}.weight"] = Tensor(None, shape, part=part, apart=False)
        down = Tensor(f"{stored}output_linear.weight", (c.width, c.ffn))
        ffn["blk.{i}.ffn_down.weight"] = down
    bias = c.keys.flag("attention_bias", False)
    attention = decoder.attention_tensors(c, bias=bias, out_bias=bias)
    mixer = state_space.tensors2(c, s, "mamba")
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(attention, [i for i in range(c.layers) if attends[i]]),
        **on_layers(mixer, [i for i in range(c.layers) if not attends[i]]),
        **ffn,
    }


def mixture(c: Config) -> experts.Mixture | None:
    """Its experts, in every layer; None in a model without."""
    return experts.read_mixture(c, renormalise=True)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Granite 4 file."""
    gguf = file.kind == "gguf"
    c = read_config(file, architecture, context, mixed=True, experts=gguf)
    keys, m = c.keys, mixture(c)
    if not gguf:
        c = replace(c, ffn=keys.integer("shared_ffn", c.ffn))
    attends = attending(c)
    decoder.check_activation(c, "silu")
    sizes = state_space.read_sizes(c, version=2)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    # A hybrid's attention has no positions unless the file says so.
    rotates = (
        keys.flag("rope_used", True) if gguf else keys.raw("position_embedding_type") == "rope"
    )
    factors = decoder.rope_factors(c, catalog)
    rope = read_rope(c, llama.rope_style(file), factors=factors) if rotates else None
    eps = decoder.rms_eps(c)
    kept = state_space.Kept()
    usual = 1 / math.sqrt(c.head_dim) if gguf else 1.0
    scale = keys.number("attention_scale", 0.0) or usual
    residual = keys.number("residual_scale", 0.0) or 1.0

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attends[i]:
            number = kept.kv(c, i)
            h = decoder.attention(b, c, catalog, h, i, rope=rope, scale=scale, layer=number)
        else:
            h = state_space.mixer2(b, sizes, catalog, kept, h, i, eps)
        x = b.add(x, b.scale(h, residual))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        h = experts.feed_forward(b, catalog, m, h, i, scaled=False)
        return b.add(x, b.scale(h, residual))

    def logits(b: Builder, x: str) -> str:
        x = decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps))
        return b.scale(x, 1 / (keys.number("logit_scale", 0.0) or 1.0))

    embedding = keys.number("embedding_scale", 0.0) or 1.0
    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", embedding),
        layer=layer,
        head=logits,
        state=kept.state,
    )
