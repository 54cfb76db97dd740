"""Granite 4: Mamba-2 or attention a layer, each with a feed-forward or with experts beside a shared
one, and Granite's scales. Bamba: the same with other names, rotated positions and no scales.

Source: the GraniteMoeHybrid and Bamba configurations of transformers.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, llama, state_space
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model

_ATTENTION = {"attention", "full_attention"}
_TYPES = {"mamba", "linear_attention", *_ATTENTION}
_BAMBA = "BambaForCausalLM"


def attending(c: Config) -> list[bool]:
    """Which layers have attention."""
    if c.architecture == _BAMBA:
        chosen = c.keys.raw("attn_layer_indices") or []
        if not isinstance(chosen, list) or any(i not in range(c.layers) for i in chosen):
            raise ConfigError("'attn_layer_indices': a list of layers is expected")
        return [i in chosen for i in range(c.layers)]
    listed = c.keys.texts("layer_types", c.layers, _TYPES)
    if listed is not None:
        return [kind in _ATTENTION for kind in listed]
    return [n > 0 for n in c.keys.integers("kv_heads", c.layers, 0)]


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Granite 4."""
    s, attends = state_space.read_sizes(c, version=2), attending(c)
    ffn, m = experts.mixture_tensors(c, mixture(c)), mixture(c)
    bamba = c.architecture == _BAMBA
    after_attention = "pre_ff_layernorm" if bamba else "post_attention_layernorm"
    frame = decoder.frame_tensors(c)
    if bamba:
        frame["output_norm.weight"] = Tensor("{p}final_layernorm.weight", (c.width,))
        ffn = {
            name: replace(t, huggingface=(t.huggingface or "").replace(".mlp.", ".feed_forward."))
            for name, t in ffn.items()
        }
    elif c.keys.kind != "gguf":
        shared = ("shared_mlp", "" if m is None else "_shexp", c.ffn if m is None else m.shared)
        fused = [shared] if m is None or m.shared else []
        fused += [] if m is None else [("block_sparse_moe", "_exps", m.ffn)]
        for block, ending, width in fused:
            stored = f"{{p}}layers.{{i}}.{block}."
            for start, name in ((0, "gate"), (width, "up")):
                key = f"blk.{{i}}.ffn_{name}{ending}.weight"
                part = Part("", f"{stored}input_linear.weight", start, 2 * width)
                ffn[key] = replace(ffn[key], huggingface=None, part=part, apart=False)
            key = f"blk.{{i}}.ffn_down{ending}.weight"
            ffn[key] = replace(ffn[key], huggingface=f"{stored}output_linear.weight", part=None)
    bias = c.keys.flag("attention_bias", False)
    attention = decoder.attention_tensors(c, bias=bias, out_bias=bias)
    mixer = state_space.tensors2(c, s, "mamba")
    return {
        **frame,
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm=after_attention),
        **on_layers(attention, [i for i in range(c.layers) if attends[i]]),
        **on_layers(mixer, [i for i in range(c.layers) if not attends[i]]),
        **ffn,
    }


def mixture(c: Config) -> experts.Mixture | None:
    """Its experts, in every layer; None in a model without."""
    names = experts.HuggingFaceNames(block="block_sparse_moe", router="router.layer")
    return experts.read_mixture(c, renormalise=True, names=names)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Granite 4 file."""
    gguf = file.kind == "gguf"
    c = read_config(file, architecture, context, mixed=True, experts=True)
    keys, m = c.keys, mixture(c)
    if not gguf and m is None:
        c = replace(c, ffn=keys.integer("shared_ffn", c.ffn))
    attends = attending(c)
    decoder.check_activation(c, "silu")
    sizes = state_space.read_sizes(c, version=2)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    # A hybrid's attention has no positions unless the file says so.
    bamba = architecture == _BAMBA
    rotates = bamba or (
        keys.flag("rope_used", True) if gguf else keys.raw("position_embedding_type") == "rope"
    )
    factors = decoder.rope_factors(c, catalog)
    if bamba:
        c = replace(c, keys=keys.assuming({"rope_partial": 0.5}))
    rope = read_rope(c, llama.rope_style(file), factors=factors) if rotates else None
    eps = decoder.rms_eps(c)
    kept = state_space.Kept()
    usual = 1 / math.sqrt(c.head_dim) if gguf or bamba else 1.0
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
