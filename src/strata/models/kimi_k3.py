"""Kimi K3: Kimi Delta Attention, every few layers gated latent attention without positions; experts
that read and give shorter vectors. Each half of a layer reads a mixture of the residual and of what
it was every few layers before, from where it began anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, hyper_connections, kda, kimi_linear, latent
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.kda import Kda
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model
from strata.records import dataclass


@dataclass(frozen=True)
class Situ:
    """gate's tanh times its sigmoid, times up's tanh; tanh reaches up to ``beta`` and ``linear``
    (0: up as it is)."""

    beta: float
    linear: float

    def of(self, b: Builder, gate: str, up: str) -> str:
        """Of two products."""
        gate = b.mul(b.softcap(gate, self.beta), b.activation(gate, "sigmoid"))
        return b.mul(gate, b.softcap(up, self.linear))


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Kimi K3 file."""
    c = kimi_linear.read_hybrid(file, architecture, context)
    every = c.keys.integer("residual_block", high=1 << 16)
    banks = -(-c.layers // every)
    if (1 + banks) * c.width > MAX_WIDTH:
        key = c.keys.find("residual_block")[0]
        raise ConfigError(
            f"'{key}' is {every}: {banks} residuals of {c.width} are {MAX_WIDTH} at most"
        )
    linear = c.keys.number("situ_linear", 0.0, low=-1e6, high=1e6)
    situ = Situ(c.keys.number("situ_beta", low=1e-6, high=1e6), max(linear, 0.0))
    m = experts.read_mixture(c, scoring="sigmoid")
    if m is None:
        raise ConfigError(f"'{c.keys.find('experts')[0]}' is missing or 0: layers have experts")
    m = replace(m, shared=m.ffn * c.keys.integer("shared_experts", 1, low=1, high=64))
    bound = c.keys.number("kda_bound", 0.0, low=-100.0, high=0.0)
    k = Kda(*kda.read_sizes(c), gate=("g",), bound=bound, sign=-1.0)
    recurrent = kda.recurrent(c)
    c, a = kimi_linear.read_widths(file, c)
    unused = (*decoder.harmless(c), *kda.UNUSED, r"blk\.\d+\.(attn|ffn)_\w+\.scale")
    catalog = Catalog(file, _tensors(c, a, k, m, recurrent), c.layers, harmless=unused)
    eps, kept, wide = decoder.rms_eps(c), Kept(), (1 + banks) * c.width

    def mixed(b: Builder, x: str, banked: str | None, count: int, name: str) -> str:
        if banked is None:
            return x
        streams = b.join(x, banked, heads=1)
        scores = b.group_sum(b.rms_norm(streams, f"{name}_res_score.weight", eps), c.width)
        return b.mix(streams, b.softmax(scores, count + 1), count + 1)

    def mixer(b: Builder, h: str, i: int) -> str:
        if recurrent[i]:
            return kda.mixer(b, k, catalog, kept, h, i, eps)
        layer = kept.add(a.state(c.heads))
        options: dict[str, Any] = {"layer": layer, "rope": None, "gated": True, "scaled": False}
        return latent.attention(b, c, catalog, a, h, i, eps=eps, **options)

    def layer(b: Builder, row: str, i: int) -> str:
        count = -(-i // every)
        x = b.columns(row, head_dim=wide, start=0, width=c.width)
        banked = None
        if count:
            banked = b.columns(row, head_dim=wide, start=c.width, width=count * c.width)
        h = b.rms_norm(
            mixed(b, x, banked, count, f"blk.{i}.attn"), f"blk.{i}.attn_norm.weight", eps
        )
        h = mixer(b, h, i)
        if i % every == 0:
            banked = x if banked is None else b.join(banked, x, heads=1)
            count, x = count + 1, h
        else:
            x = b.add(x, h)
        h = mixed(b, x, banked, count, f"blk.{i}.ffn")
        h = b.rms_norm(h, f"blk.{i}.ffn_norm.weight", eps)
        x = b.add(x, _feed_forward(b, catalog, m, situ, h, i, eps))
        out = b.join(x, banked or x, heads=1)
        if count == banks:
            return out
        # What is not there yet has its place.
        rest = (count + 1) * c.width
        return b.join(out, b.columns(row, head_dim=wide, start=rest, width=wide - rest), heads=1)

    def head(b: Builder, row: str) -> str:
        x = b.columns(row, head_dim=wide, start=0, width=c.width)
        banked = b.columns(row, head_dim=wide, start=c.width, width=wide - c.width)
        x = b.rms_norm(mixed(b, x, banked, banks, "output"), "output_norm.weight", eps)
        return decoder.head(b, c, x)

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: hyper_connections.spread(b, b.embed("token_embd.weight"), 1 + banks),
        layer=layer,
        head=head,
        state=kept.state,
        hidden=wide,
    )


def _tensors(
    c: Config, a: latent.Latent, k: Kda, m: experts.Mixture, recurrent: list[bool]
) -> dict[str, Tensor]:
    attending = latent.latent_tensors(c, a)
    attending["blk.{i}.attn_gate.weight"] = Tensor(None, (c.heads * a.value, c.width))
    routed = experts.mixture_tensors(c, m)
    width = c.keys.integer("expert_latent", 0, low=0, high=MAX_WIDTH)
    if width:
        inside, outside = (m.experts, m.ffn, width), (m.experts, width, m.ffn)
        for part, shape in (("gate", inside), ("up", inside), ("down", outside)):
            name = f"blk.{{i}}.ffn_{part}_exps.weight"
            routed[name] = replace(routed[name], shape=shape)
        optional = not all(m.layers)
        routed["blk.{i}.ffn_routed_down.weight"] = Tensor(None, (width, c.width), optional)
        routed["blk.{i}.ffn_routed_up.weight"] = Tensor(None, (c.width, width), optional)
        routed["blk.{i}.ffn_routed_norm.weight"] = Tensor(None, (width,), optional=True)
    scores = ("blk.{i}.attn_res_score", "blk.{i}.ffn_res_score", "output_res_score")
    return {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(attending, [i for i in range(c.layers) if not recurrent[i]]),
        **on_layers(kda.tensors(c, k), [i for i in range(c.layers) if recurrent[i]]),
        **routed,
        **{f"{name}.weight": Tensor(None, (c.width,)) for name in scores},
    }


def _feed_forward(
    b: Builder, catalog: Catalog, m: experts.Mixture, situ: Situ, x: str, i: int, eps: float
) -> str:
    """A layer's experts beside those that every row goes through, or its plain feed-forward."""
    name = f"blk.{i}.ffn_"

    def plain(suffix: str) -> str:
        with b.unit("ffn"):
            gate, up = (b.matmul(x, f"{name}{part}{suffix}.weight") for part in ("gate", "up"))
            return b.matmul(situ.of(b, gate, up), f"{name}down{suffix}.weight")

    if not m.layers[i]:
        return plain("")
    own, narrow = x, any(catalog.has(f"{name}routed_{part}.weight") for part in ("down", "up"))
    if narrow:
        with b.unit("ffn"):
            own = b.matmul(x, f"{name}routed_down.weight")
    limits: dict[str, Any] = {"clamp": "situ", "limit": situ.beta, "up_limit": situ.linear}
    out = experts.routed(b, catalog, m, own, i, router_input=x, scaled=False, **limits)
    if catalog.has(f"{name}routed_norm.weight"):
        out = b.rms_norm(out, f"{name}routed_norm.weight", eps)
    if narrow:
        with b.unit("ffn"):
            out = b.matmul(out, f"{name}routed_up.weight")
    return b.add(out, plain("_shexp"))
