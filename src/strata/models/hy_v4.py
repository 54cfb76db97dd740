"""Hunyuan 4: gated latent attention with sinks, experts with bounded gates beside a shared one, and
hyper-connections around both halves of a layer.

Indexers (``sparse_index.py``) turn the numbers that come last, as its attention does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, hyper_connections, latent, sparse_index
from strata.models.config import read_config
from strata.models.rope import Style, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Hunyuan 4 file."""
    c = read_config(file, architecture, context, experts=True, latent=True)
    gguf = file.kind == "gguf"
    if not gguf:
        stated = {"expert_clamp": 10.0, "expert_norm": True, "streams": 4}
        stated |= {"stream_eps": 1e-6, "stream_magnitude": 2.0, "indexer_every": 4}
        c = replace(c, keys=c.keys.assuming(stated))
    c, a = latent.read_latent(c, absorbed=gguf)
    m = experts.read_mixture(c, scoring="sigmoid", dense=0 if gguf else 1)
    limits, eps = experts.read_limits(c), decoder.rms_eps(c)
    style: Style = "interleaved" if gguf else "neox"
    index = sparse_index.read_index(c, a.q_rank, a.rope, style=style, behind=True, eps=eps)
    streams = hyper_connections.read_streams(c, eps)
    stored = "{p}layers.{i}.self_attn."
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **latent.latent_tensors(c, a),
        "blk.{i}.attn_sinks.weight": Tensor(f"{stored}learnable_sink_param", (c.heads,)),
        "blk.{i}.attn_gate.weight": Tensor(
            f"{stored}linear_gate.weight", (c.heads * a.value, c.width)
        ),
        **hyper_connections.tensors(streams),
        **experts.mixture_tensors(c, m),
        **sparse_index.index_tensors(c, index, a.q_rank),
    }
    unread = (r"blk\.\d+\.attn_\w+\.scale", *sparse_index.unread(index))
    catalog = Catalog(file, tensors, c.layers, harmless=(*decoder.harmless(c), *unread))
    rope = read_rope(c, style)
    inner_eps = latent.inner_eps(c, eps)

    whole = streams.count * c.width
    seen: list[str] = []
    """What the layer that is built sees, last."""

    def choose(b: Builder, x: str, query: str, i: int) -> str:
        if index is not None and index.full[i]:
            seen.append(index.choose(b, x, query, i, rope))
        return seen[-1]

    def attend(b: Builder, x: str, i: int) -> str:
        sinks = f"blk.{i}.attn_sinks.weight"
        options: dict[str, Any] = {"gated": True, "scaled": False, "sinks": sinks}
        if index is not None:
            options["choose"] = lambda x, query: choose(b, x, query, i)
        return latent.attention(b, c, catalog, a, x, i, rope=rope, eps=inner_eps, **options)

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if m is None or not m.layers[i]:
            return decoder.gated(b, catalog, x, i, "silu")
        out = experts.routed(b, catalog, m, x, i, scaled=False, **limits[i])
        return b.add(out, experts.shared(b, catalog, x, i, scaled=False)) if m.shared else out

    def layer(b: Builder, x: str, i: int) -> str:
        if index is not None:
            x, known = index.split(b, x, whole)
            seen[:] = [known]
        for half, run in (("attn", attend), ("ffn", feed_forward)):
            h, back = hyper_connections.read(b, x, f"blk.{i}.hc_{half}", streams)
            h = run(b, b.rms_norm(h, f"blk.{i}.{half}_norm.weight", eps), i)
            x = hyper_connections.write(b, x, h, back, streams)
        return x if index is None else index.beside(b, x, seen[-1])

    def logits(b: Builder, x: str) -> str:
        x = x if index is None else index.split(b, x, whole)[0]
        x = hyper_connections.last(b, x, streams)
        return decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps))

    def embed(b: Builder) -> str:
        x = hyper_connections.spread(b, b.embed("token_embd.weight"), streams.count)
        return x if index is None else index.begin(b, x, whole)

    state = [a.state(c.heads, chosen=index is not None)] * c.layers
    return decoder.assemble(
        c,
        catalog,
        embed=embed,
        layer=layer,
        head=logits,
        state=[*state, *(index.state() if index else ())],
        hidden=whole + (index.carried if index else 0),
    )
