"""Gemma 4 (its language model): Gemma 3's layers with heads as wide as their kind asks for, values
that are normed and may be the keys, keys and values shared by late layers, per-layer embeddings,
and experts beside the plain feed-forward.

Sources: the model card of Gemma 4, transformers' and llama.cpp's reading of its files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from strata.formats import ModelFile
from strata.models import decoder, experts, gemma2, per_layer, shared_kv
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import REQUIRED, whole
from strata.models.rope import Rope, read_local_rope, read_rope
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model

_GLOBAL_HEAD_DIM = 512


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Gemma 4 file; of a multimodal one, its language model."""
    c = read_config(
        file, architecture, context, tied=True, head_dim=256, experts=True, uneven=True, values=True
    )
    if c.keys.find("bidirectional")[1] == "all":
        raise ConfigError("'use_bidirectional_attention' is 'all': this model generates nothing")
    window = c.keys.integer("window", REQUIRED if file.kind == "gguf" else 512)
    c = decoder.with_windows(c, window, 6)
    decoder.check_activation(c, gemma2.GELU)
    sources = shared_kv.kept_by(c)
    layers = _layers(c, sources)
    m = _mixture(c, file)
    p = per_layer.read_per_layer(c, c.width)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, "none", **gemma2.NORMS),
        "blk.{i}.layer_output_scale.weight": Tensor("{p}layers.{i}.layer_scalar", (1,), True),
        **per_layer.tensors(c, p),
    }
    values = c.keys.kind == "gguf" or c.keys.flag("k_is_v", False)
    for i, own in enumerate(layers):
        of_layer = {**shared_kv.tensors(own, sources[i] == i), **decoder.gated_tensors(own)}
        if values and not own.windows[i]:
            of_layer = {n: _may_be(t) if "attn_v." in n else t for n, t in of_layer.items()}
        if m is not None and m.layers[i]:
            of_layer |= _mixture_tensors(c, m)
        tensors |= on_layers(of_layer, [i])
    catalog = Catalog(
        file,
        tensors,
        c.layers,
        harmless=(*decoder.harmless(c), *shared_kv.unused(sources)),
    )
    ropes = _ropes(c, catalog, layers)
    eps = decoder.rms_eps(c)
    # llama.cpp caps logits where a file does not say; config.json says so where they are capped.
    cap = c.keys.number("logit_softcap", 30.0 if file.kind == "gguf" else 0.0)

    def feed_forward(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        h = decoder.gated(b, catalog, h, i, "gelu_tanh", scaled=True)
        if m is None or not m.layers[i]:
            return h
        h = b.rms_norm(h, f"blk.{i}.post_ffw_norm_1.weight", eps)
        # The router reads the residual itself.
        chosen_by = b.scale(b.rms_norm(x, None, eps, c.width), float(np.float32(c.width**-0.5)))
        chosen_by = b.scale_by(chosen_by, f"blk.{i}.ffn_gate_inp.scale")
        routed = b.rms_norm(x, f"blk.{i}.pre_ffw_norm_2.weight", eps)
        routed = experts.routed(
            b, catalog, m, routed, i, router_input=chosen_by, function="gelu_tanh"
        )
        return b.add(h, b.rms_norm(routed, f"blk.{i}.post_ffw_norm_2.weight", eps))

    def layer(b: Builder, row: str, i: int) -> str:
        x = p.residual_of(b, row)
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        h = shared_kv.attention(
            b, layers[i], catalog, h, i, source=sources[i], rope=ropes[i], eps=eps
        )
        x = b.add(x, b.rms_norm(h, f"blk.{i}.post_attention_norm.weight", eps))
        h = feed_forward(b, x, i)
        x = b.add(x, b.rms_norm(h, f"blk.{i}.post_ffw_norm.weight", eps))
        if p.width:
            x = b.add(x, per_layer.gated(b, catalog, p, x, row, i, eps))
        if catalog.has(f"blk.{i}.layer_output_scale.weight"):
            x = b.scale_by(x, f"blk.{i}.layer_output_scale.weight")
        return b.join(x, p.inputs_of(b, row), heads=1) if p.width else x

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight", float(np.float32(math.sqrt(c.width))))
        return per_layer.behind(b, c, p, x, x, eps)

    def logits(b: Builder, row: str) -> str:
        x = b.rms_norm(p.residual_of(b, row), "output_norm.weight", eps)
        return b.softcap(decoder.head(b, c, x), cap)

    return decoder.assemble(
        c,
        catalog,
        embed=embed,
        layer=layer,
        head=logits,
        state=shared_kv.kept(layers, sources),
        hidden=c.width + p.all,
    )


def _layers(c: Config, sources: Sequence[int]) -> list[Config]:
    """The Config with the sizes of each layer."""
    if c.keys.kind == "gguf":
        local = c.keys.integer("head_dim_local", c.head_dim, high=MAX_WIDTH)
        if c.v_dim != c.head_dim or c.keys.integer("value_dim_local", local) != local:
            key = c.keys.find("value_dim" if c.v_dim != c.head_dim else "value_dim_local")[0]
            raise ConfigError(f"'{key}': this architecture has values as wide as keys")
        heads = c.keys.integers("kv_heads", c.layers, c.heads, high=MAX_WIDTH)
        widths = c.keys.integers("ffn", c.layers, high=16 * MAX_WIDTH)
        return [
            _sized(c, i, heads[i], local if window else c.head_dim, widths[i])
            for i, window in enumerate(c.windows)
        ]
    double = 2 if c.keys.flag("double_ffn", False) else 1
    out = []
    for i, (source, (heads_of, dim)) in enumerate(zip(sources, _stated_heads(c), strict=True)):
        out.append(_sized(c, i, heads_of, dim, c.ffn * (1 if source == i else double)))
    return out


def _sized(c: Config, i: int, kv_heads: int, head_dim: int, ffn: int) -> Config:
    if min(kv_heads, ffn) < 1 or c.heads % kv_heads:
        key = c.keys.find("kv_heads" if ffn else "ffn")[0]
        raise ConfigError(
            f"'{key}': layer {i} has {kv_heads} KV heads for {c.heads} heads and a feed-forward of "
            f"{ffn}"
        )
    return replace(c, kv_heads=kv_heads, head_dim=head_dim, ffn=ffn, value_dim=0)


def _stated_heads(c: Config) -> list[tuple[int, int]]:
    """KV heads of each layer and their width, as config.json states them: for layers by their
    number, or for those that see all keys."""
    usual = (c.kv_heads, c.head_dim)
    table = c.keys.raw("per_layer_config")
    if table is None:
        wide = c.keys.integer("head_dim_global", _GLOBAL_HEAD_DIM, high=MAX_WIDTH)
        few = c.kv_heads
        if c.keys.flag("k_is_v", False):
            few = c.keys.integer("kv_heads_global", c.kv_heads, high=MAX_WIDTH)
        return [usual if window else (few, wide) for window in c.windows]
    if not isinstance(table, Mapping):
        raise ConfigError("'per_layer_config': an object is expected, with layers by their number")
    return [_of_layer(table.get(str(i), {}), i, *usual) for i in range(c.layers)]


def _of_layer(stated: Any, i: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
    key, heads = f"per_layer_config.{i}", "num_key_value_heads"
    if not isinstance(stated, Mapping) or set(stated) - {"head_dim", heads}:
        raise ConfigError(f"'{key}': only head_dim and num_key_value_heads of a layer are known")
    return (
        whole(
            f"{key}.num_key_value_heads", stated.get("num_key_value_heads", kv_heads), 1, 1 << 20
        ),
        whole(f"{key}.head_dim", stated.get("head_dim", head_dim), 1, 1 << 20),
    )


def _ropes(c: Config, catalog: Catalog, layers: Sequence[Config]) -> list[Rope]:
    factors = decoder.rope_factors(c, catalog)
    ropes: dict[tuple[bool, int], Rope] = {}
    for own, window in zip(layers, c.windows, strict=True):
        kind = (window > 0, own.head_dim)
        if kind in ropes:
            continue
        if window:
            local = replace(own, keys=c.keys.without("rope_dim"))
            ropes[kind] = read_local_rope(local, "neox", base=1e4)
        else:
            ropes[kind] = read_rope(own, "neox", base=1e6, factors=factors)
    return [ropes[w > 0, own.head_dim] for own, w in zip(layers, c.windows, strict=True)]


def _may_be(t: Tensor) -> Tensor:
    return replace(t, optional=True)


def _mixture(c: Config, file: ModelFile) -> experts.Mixture | None:
    """The mixture beside the plain feed-forward: of layers with a router."""
    if file.kind == "huggingface" and not c.keys.flag("expert_block", False):
        return None
    m = experts.read_mixture(c, renormalise=True, shared=0)
    return experts.where_routed(c, file, m) if file.kind == "gguf" else m


def _mixture_tensors(c: Config, m: experts.Mixture) -> dict[str, Tensor]:
    layer = "{p}layers.{i}."
    inside = (m.experts, m.ffn, c.width)
    names = ("blk.{i}.ffn_gate_up_exps.weight", f"{layer}experts.gate_up_proj")
    return {
        **decoder.norm_tensors(
            c,
            pre_ffw_norm_2="pre_feedforward_layernorm_2",
            post_ffw_norm_1="post_feedforward_layernorm_1",
            post_ffw_norm_2="post_feedforward_layernorm_2",
        ),
        "blk.{i}.ffn_gate_inp.weight": Tensor(f"{layer}router.proj.weight", (m.experts, c.width)),
        "blk.{i}.ffn_gate_inp.scale": Tensor(f"{layer}router.scale", (c.width,)),
        "blk.{i}.ffn_gate_exps.weight": Tensor(None, inside, part=Part(*names, 0, 2 * m.ffn)),
        "blk.{i}.ffn_up_exps.weight": Tensor(None, inside, part=Part(*names, m.ffn, 2 * m.ffn)),
        "blk.{i}.ffn_down_exps.weight": Tensor(
            f"{layer}experts.down_proj", (m.experts, c.width, m.ffn)
        ),
        "blk.{i}.ffn_down_exps.scale": Tensor(
            f"{layer}router.per_expert_scale", (m.experts,), True
        ),
        **{
            f"blk.{{i}}.ffn_{name}_exps.scale": Tensor(None, (m.experts,), True)
            for name in (("gate", "up") if c.keys.kind == "gguf" else ())
        },
    }
