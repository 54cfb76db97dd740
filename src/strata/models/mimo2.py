"""MiMo-V2 (Xiaomi): keys and values of different widths, windows with sinks and KV heads of their
own, experts that a sigmoid weighs; which layers have experts a GGUF file's routers tell.

Blocks that predict further tokens are left out.
"""

from __future__ import annotations

from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.composed_tensors import layer_config
from strata.models.config import MAX_LAYERS, MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model, PagedKV

_KINDS = ("full_attention", "sliding_attention")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiMo-V2 file."""
    keys, gguf = Keys(file, architecture), file.kind == "gguf"
    keys = keys if gguf else keys.stating(_by_layer(keys)).assuming({"value_scale": 0.707})
    c = read_config(file, architecture, context, experts=True, uneven=True, values=True, keys=keys)
    c = decoder.with_windows(c, c.keys.integer("window"), 1)
    layers = [layer_config(c, i) for i in range(c.layers)]
    c, further = decoder.without_further(c)
    layers = layers[: c.layers]
    renormalise = gguf or c.keys.flag("expert_norm", True)
    m = experts.read_mixture(c, scoring="sigmoid", renormalise=renormalise, shared=0, dense=1)
    m = experts.where_routed(c, file, m) if gguf else m
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        "blk.{i}.attn_sinks.weight": Tensor(
            "{p}layers.{i}.self_attn.attention_sink_bias", (c.heads,), optional=True
        ),
        **experts.mixture_tensors(c, m),
    }
    for i, own in enumerate(layers):
        tensors |= on_layers(_attention(own), [i])
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


def _attention(c: Config) -> dict[str, Tensor]:
    """The projections of a layer; in GGUF files biases and the numbers beside the first products
    are not read."""
    if c.keys.kind != "gguf":
        bias = c.keys.flag("attention_bias", False)
        return decoder.attention_tensors(c, bias=bias, out_bias=False)
    made = decoder.attention_tensors(c, bias=False, out_bias=False)
    return {n: t for n, t in made.items() if n.endswith("weight") or "output.scale" in n}


def _by_layer(keys: Keys) -> dict[str, Any]:
    """What a directory says of its layers, in the words of the model's publisher or of
    transformers, as a list each."""
    layers = keys.integer("layers", high=MAX_LAYERS)
    for name in ("heads", "head_dim", "v_head_dim"):
        key, value = keys.find(f"{name}_local")
        if value not in (None, keys.find(name)[1]):
            raise ConfigError(f"'{key}' differs from '{keys.find(name)[0]}': this is not built")
    flags = keys.flags("windowed_layers", layers)
    kinds = keys.texts("layer_types", layers, _KINDS)
    if kinds is None and flags is None:
        raise ConfigError("'layer_types' is missing: without it the model cannot be built")
    kinds = kinds or [_KINDS[sliding] for sliding in flags or ()]
    full = keys.integer("kv_heads", high=MAX_WIDTH)
    local = keys.integer("kv_heads_local", 2 * full, high=MAX_WIDTH)
    found: dict[str, Any] = {
        "layer_types": kinds,
        "kv_heads": [full if kind == _KINDS[0] else local for kind in kinds],
        **experts.kinds_of(keys, layers),
    }
    if keys.find("window_before")[1] is not None:
        # Here without the position itself.
        found["window"] = keys.integer("window_before") + 1
    return found
