"""dots.3 Note: latent attention with a gate for each head and a norm of rotated keys, layers with a
sliding window and widths of their own, experts beside a shared one.

Layers without a window have indexers (``sparse_index.py``). Blocks that predict further tokens are
left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, latent, sparse_index
from strata.models.config import MAX_LAYERS, MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.latent import Latent
from strata.models.rope import Style, read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model

_FULL = ("full_attention", "indexed_attention")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a dots.3 Note file."""
    keys, gguf = Keys(file, architecture), file.kind == "gguf"
    indexed = None if gguf else _indexed(keys)
    keys = keys if gguf else keys.stating(_by_layer(keys)).assuming({"expert_norm": True})
    c = read_config(file, architecture, context, experts=True, latent=True, uneven=True, keys=keys)
    c = decoder.with_windows(c, c.keys.integer("window"), 1)
    heads = c.keys.integers("heads", c.layers, high=MAX_WIDTH)
    c, further = decoder.without_further(c)
    c, wide = latent.read_latent(c, absorbed=gguf)
    narrow, local = latent.read_latent(c, absorbed=gguf, local=True)
    if not gguf:
        wide, local = _scaled(c, wide), _scaled(c, local)
    layers = [
        (replace(c, heads=heads[i], kv_heads=heads[i]), local if c.windows[i] else wide)
        for i in range(c.layers)
    ]
    full = tuple(not window for window in c.windows) if indexed is None else indexed
    style: Style = "neox" if gguf else "interleaved"
    index = None
    if any(full):
        index = sparse_index.read_index(c, wide.q_rank, wide.rope, style=style, full=full)
    shared = None if gguf else c.keys.integer("shared_ffn") * c.keys.integer("shared_experts", 1)
    m = experts.read_mixture(c, scoring="sigmoid", shared=shared, dense=0 if gguf else 1)
    stored = "{p}layers.{i}.self_attn."
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **experts.mixture_tensors(c, m),
        **sparse_index.index_tensors(c, index, wide.q_rank),
    }
    for i, (own, a) in enumerate(layers):
        attention = {
            **latent.latent_tensors(own, a),
            "blk.{i}.attn_k_norm.weight": Tensor(
                f"{stored}k_rope_only_layernorm.weight", (a.rope,)
            ),
            "blk.{i}.attn_gate.weight": Tensor(
                f"{stored}g_proj.weight", (own.heads, c.width), unit_axes=True
            ),
        }
        tensors |= on_layers(attention, [i])
    unread = (r"blk\.\d+\.attn_\w+\.scale", further, *sparse_index.unread(index))
    catalog = Catalog(file, tensors, c.layers, harmless=(*decoder.harmless(c), *unread))
    full_rope = read_rope(c, "interleaved")
    local_rope = read_local_rope(c if gguf else narrow, "interleaved")
    eps = decoder.rms_eps(c)

    def chooses(i: int) -> bool:
        return index is not None and index.full[i]

    def attend(b: Builder, x: str, i: int) -> str:
        own, a = layers[i]
        rope = local_rope if c.windows[i] else full_rope

        def choose(x: str, query: str) -> str:
            assert index is not None
            return index.choose(b, x, query, i, rope)

        options: dict[str, Any] = {"rope": rope, "eps": eps, "k_norm": True, "gated": True}
        options["choose"] = choose if chooses(i) else None
        return latent.attention(b, own, catalog, a, x, i, **options)

    return decoder.pre_norm_model(
        c,
        catalog,
        None,
        attend=attend,
        state=[
            *(
                a.state(own.heads, c.windows[i], chosen=chooses(i))
                for i, (own, a) in enumerate(layers)
            ),
            *(index.state() if index else ()),
        ],
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i),
    )


def _scaled(c: Config, a: Latent) -> Latent:
    """With the factors of normed vectors, which converters put into the norms."""
    if not a.q_rank:
        key = c.keys.find("q_rank")[0]
        raise ConfigError(f"'{key}' is missing: without it the model cannot be built")
    scales = (math.sqrt(c.width / rank) for rank in (a.q_rank, a.rank))
    return replace(a, q_scale=next(scales), kv_scale=next(scales))


def _indexed(keys: Keys) -> tuple[bool, ...]:
    """Which layers of a directory have an indexer."""
    layers = keys.integer("layers", high=MAX_LAYERS)
    kinds = keys.texts("layer_types", layers, ("sliding_attention", *_FULL)) or ()
    said = keys.raw("use_dsa")
    if said is not None and not isinstance(said, bool):
        raise ConfigError("'use_dsa': true or false is expected")
    if said is False:
        return (False,) * layers
    # As checkpoints were published all layers without a window are called full.
    published = said or keys.raw("per_layer_config") is None
    return tuple(kind in (_FULL if published else _FULL[1:]) for kind in kinds)


def _by_layer(keys: Keys) -> dict[str, Any]:
    """What a directory says of its layers, as a list each."""
    layers = keys.integer("layers", high=MAX_LAYERS)
    kinds = keys.texts("layer_types", layers, ("sliding_attention", *_FULL))
    if kinds is None:
        raise ConfigError("'layer_types' is missing: without it the model cannot be built")
    wide = keys.integer("heads", high=MAX_WIDTH)
    local = keys.integer("heads_local", high=MAX_WIDTH)
    heads = [wide if kind in _FULL else local for kind in kinds]
    found: dict[str, Any] = {
        "layer_types": ["full_attention" if kind in _FULL else kind for kind in kinds],
        **{"heads": heads, "kv_heads": heads},
        **experts.kinds_of(keys, layers),
    }
    if not keys.stated("window"):
        found["window"] = keys.integer("window_before")
    return found
