"""GLM-5.3-Flash: Kimi Delta Attention, every few layers latent attention without positions;
experts; residual streams that matrices with rows and columns of sum 1 mix.

Its indexer, which chooses among pools of positions, is left out where it would choose all of them
(``config.read_trained_context``), and so are blocks that predict further tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, hyper_connections, kda, latent, mixed_streams
from strata.models.config import read_config
from strata.models.errors import ConfigError
from strata.models.kda import Kda
from strata.models.keys import Keys
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, on_layers
from strata.program import Builder, Model

_LOWEST = -3.0e38


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a GLM-5.3-Flash file."""
    # The indexer chooses so many positions, in pools.
    keys = Keys(file, architecture).without("indexer_block")
    options: dict[str, Any] = {"mixed": True, "experts": True, "latent": True, "keys": keys}
    c, further = decoder.without_further(read_config(file, architecture, context, **options))
    if not c.keys.flag("indexer_tail", False):
        key = c.keys.find("indexer_tail")[0]
        raise ConfigError(
            f"'{key}' is missing or false: rows that do not see those just before are not built"
        )
    m = experts.read_mixture(c, scoring="sigmoid")
    if m is not None:
        m = replace(m, shared=m.ffn * c.keys.integer("shared_experts", 1, low=1, high=64))
    clamps = c.keys.numbers("expert_clamp", c.layers, 0.0, high=1e6)
    limits = c.keys.numbers("shared_clamp", c.layers, 0.0, high=1e6)
    if not c.keys.stated("shared_clamp"):
        limits = clamps
    bound = c.keys.number("kda_bound", 0.0, low=-100.0, high=0.0)
    k = Kda(*kda.read_sizes(c), bound=bound, sign=-1.0)
    recurrent = kda.recurrent(c)
    c, a = latent.read_latent(c, absorbed=True, bare=True)
    eps, kept = decoder.rms_eps(c), Kept()
    streams = mixed_streams.read_streams(c, eps)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(latent.latent_tensors(c, a), [i for i, r in enumerate(recurrent) if not r]),
        **on_layers(kda.tensors(c, k), [i for i, r in enumerate(recurrent) if r]),
        **mixed_streams.tensors(streams),
        **experts.mixture_tensors(c, m),
    }
    unread = (r"blk\.\d+\.indexer(\.|_).*", r"blk\.\d+\.(attn|ffn)_\w+\.scale", further)
    catalog = Catalog(
        file, tensors, c.layers, harmless=(*decoder.harmless(c), *kda.UNUSED, *unread)
    )

    def mixer(b: Builder, x: str, i: int) -> str:
        if recurrent[i]:
            return kda.mixer(b, k, catalog, kept, x, i, eps, unit_eps=1e-6)
        layer = kept.add(a.state(c.heads))
        options: dict[str, Any] = {"layer": layer, "rope": None, "scaled": False}
        return latent.attention(b, c, catalog, a, x, i, eps=eps, **options)

    def plain(b: Builder, x: str, i: int, suffix: str) -> str:
        with b.unit("ffn"):
            gate, up = (b.matmul(x, f"blk.{i}.ffn_{p}{suffix}.weight") for p in ("gate", "up"))
            if limits[i] > 1e-6:
                gate = b.clamp(gate, _LOWEST, limits[i])
                up = b.clamp(up, -limits[i], limits[i])
            return b.matmul(b.glu(gate, up, "silu"), f"blk.{i}.ffn_down{suffix}.weight")

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if m is None or not m.layers[i]:
            return plain(b, x, i, "")
        bounds: dict[str, Any] = {}
        if clamps[i] > 1e-6:
            bounds = {"clamp": "inputs", "limit": clamps[i]}
        out = experts.routed(b, catalog, m, x, i, scaled=False, **bounds)
        return b.add(out, plain(b, x, i, "_shexp"))

    def layer(b: Builder, x: str, i: int) -> str:
        for half, run in (("attn", mixer), ("ffn", feed_forward)):
            h, back = mixed_streams.read(b, x, f"blk.{i}.hc_{half}", streams)
            h = run(b, b.rms_norm(h, f"blk.{i}.{half}_norm.weight", eps), i)
            x = mixed_streams.write(b, x, h, back, streams)
        return x

    def head(b: Builder, x: str) -> str:
        mean = mixed_streams.mean(b, x, streams)
        return decoder.head(b, c, b.rms_norm(mean, "output_norm.weight", eps))

    count = streams.count
    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: hyper_connections.spread(b, b.embed("token_embd.weight"), count),
        layer=layer,
        head=head,
        state=kept.state,
        hidden=count * c.width,
    )
