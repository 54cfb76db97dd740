"""Hunyuan 4: gated latent attention with sinks, experts with bounded gates beside a shared one, and
hyper-connections around both halves of a layer.

Its indexer is left out as in ``deepseek2.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, hyper_connections, latent
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Hunyuan 4 file."""
    c = read_config(file, architecture, context, experts=True, latent=True)
    gguf = file.kind == "gguf"
    if not gguf:
        stated = {"expert_clamp": 10.0, "expert_norm": True, "streams": 4}
        stated |= {"stream_eps": 1e-6, "stream_magnitude": 2.0}
        c = replace(c, keys=c.keys.assuming(stated))
    c, a = latent.read_latent(c, absorbed=gguf)
    m = experts.read_mixture(c, scoring="sigmoid", dense=0 if gguf else 1)
    limits, eps = experts.read_limits(c), decoder.rms_eps(c)
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
    }
    unread = (r"blk\.\d+\.indexer\..*", r"blk\.\d+\.attn_\w+\.scale", r".*\.self_attn\.indexer\..*")
    catalog = Catalog(file, tensors, c.layers, harmless=(*decoder.harmless(c), *unread))
    rope = read_rope(c, "interleaved" if gguf else "neox")
    inner_eps = latent.inner_eps(c, eps)

    def attend(b: Builder, x: str, i: int) -> str:
        sinks = f"blk.{i}.attn_sinks.weight"
        options: dict[str, Any] = {"gated": True, "scaled": False, "sinks": sinks}
        return latent.attention(b, c, catalog, a, x, i, rope=rope, eps=inner_eps, **options)

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if m is None or not m.layers[i]:
            return decoder.gated(b, catalog, x, i, "silu")
        out = experts.routed(b, catalog, m, x, i, scaled=False, **limits[i])
        return b.add(out, experts.shared(b, catalog, x, i, scaled=False)) if m.shared else out

    def layer(b: Builder, x: str, i: int) -> str:
        for half, run in (("attn", attend), ("ffn", feed_forward)):
            h, back = hyper_connections.read(b, x, f"blk.{i}.hc_{half}", streams)
            h = run(b, b.rms_norm(h, f"blk.{i}.{half}_norm.weight", eps), i)
            x = hyper_connections.write(b, x, h, back, streams)
        return x

    def logits(b: Builder, x: str) -> str:
        x = hyper_connections.last(b, x, streams)
        return decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: hyper_connections.spread(b, b.embed("token_embd.weight"), streams.count),
        layer=layer,
        head=logits,
        state=[a.state(c.heads)] * c.layers,
        hidden=streams.count * c.width,
    )
