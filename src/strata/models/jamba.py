"""Jamba (arXiv:2403.19887): Mamba-1 or attention without positions a layer, every few layers with
experts."""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, state_space
from strata.models.config import Config, read_config
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model


def mixture(c: Config, file: ModelFile) -> experts.Mixture | None:
    """Its experts, in the layers that the file says; None in a model without."""
    if c.keys.integer("experts", 0, low=0) < 2:
        return None
    names = experts.HuggingFaceNames(block="feed_forward", router="router")
    m = experts.read_mixture(c, renormalise=False, shared=0, names=names)
    if m is None or file.kind == "gguf":
        return experts.where_routed(c, file, m)
    period, offset = c.keys.integer("expert_period"), c.keys.integer("expert_offset", low=0)
    return replace(m, layers=tuple(i % period == offset for i in range(c.layers)))


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Jamba file."""
    c = read_config(file, architecture, context, mixed=True, experts=True)
    decoder.check_activation(c, "silu")
    if file.kind == "gguf":
        attends = [n > 0 for n in c.keys.integers("kv_heads", c.layers)]
    else:
        period, offset = (c.keys.integer(f"attention_{n}", low=0) for n in ("period", "offset"))
        attends = [i % max(period, 1) == offset for i in range(c.layers)]
    sizes = state_space.read_sizes(c, version=1)
    recurrent = [i for i in range(c.layers) if not attends[i]]
    m = mixture(c, file)
    ffn = {
        name: replace(t, huggingface=(t.huggingface or "").replace(".mlp.", ".feed_forward."))
        for name, t in experts.mixture_tensors(c, m).items()
        if not name.endswith("bias")
    }
    attention = decoder.attention_tensors(c, bias=False, out_bias=False)
    frame = decoder.frame_tensors(c)
    frame["output_norm.weight"] = Tensor("{p}final_layernorm.weight", (c.width,))
    tensors = {
        **frame,
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="pre_ff_layernorm"),
        **on_layers(attention, [i for i in range(c.layers) if attends[i]]),
        **on_layers(state_space.tensors1(c, sizes, "mamba", norms=True), recurrent),
        **ffn,
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    eps = decoder.rms_eps(c)
    kept = state_space.Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attends[i]:
            h = decoder.attention(b, c, catalog, h, i, rope=None, layer=kept.kv(c, i))
        else:
            h = state_space.mixer1(b, c, sizes, catalog, kept, h, i)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i, scaled=False))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
