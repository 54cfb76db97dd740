"""Qwen3-Next: Qwen 3.5's layers with experts, whose delta rule is made by two fused products.

Sources: transformers' configuration and the tensors of its GGUF files. What belongs to a key head
stands together in the fused products: its q, k, values and gates; the betas and decays of its
values. Newer GGUF files have q, k and v apart from the gates.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, qwen35
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.qwen35 import Delta
from strata.models.rope import read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model


def delta_tensors(c: Config, d: Delta, *, fused: bool) -> dict[str, Tensor]:
    """Of a layer of the delta rule; ``fused``: the gates are in one product with q, k and v."""
    stored = "{p}layers.{i}.linear_attn."
    tensors = {
        name: tensor
        for name, tensor in qwen35.delta_tensors(c, d).items()
        if not name.startswith(("blk.{i}.ssm_beta", "blk.{i}.ssm_alpha"))
    }
    tensors["blk.{i}.ssm_ba.weight"] = Tensor(f"{stored}in_proj_ba.weight", (2 * d.heads, c.width))
    tensors |= decoder.scale_tensors(c, "ssm_ba")
    if fused:
        tensors = {
            name: t
            for name, t in tensors.items()
            if not name.startswith(("blk.{i}.attn_qkv", "blk.{i}.attn_gate"))
        }
        tensors["blk.{i}.ssm_in.weight"] = Tensor(
            f"{stored}in_proj_qkvz.weight", (2 * d.keys + 2 * d.values, c.width)
        )
        tensors |= decoder.scale_tensors(c, "ssm_in")
    return tensors


def delta(b: Builder, d: Delta, catalog: Catalog, kept: Kept, x: str, i: int, eps: float) -> str:
    """A layer of the delta rule."""
    name, each = f"blk.{i}.", d.heads // d.key_heads
    widths = (d.k_dim, d.k_dim, each * d.v_dim, each * d.v_dim)

    def parts(made: str, *widths: int) -> list[str]:
        starts = [sum(widths[:n]) for n in range(len(widths))]
        return [
            b.columns(made, head_dim=sum(widths), start=start, width=width)
            for start, width in zip(starts, widths, strict=True)
        ]

    with b.unit("attention"):
        # Scales beside these weights are not applied, as llama.cpp has it.
        if catalog.has(f"{name}ssm_in.weight"):
            made = decoder.product(b, catalog, x, f"{name}ssm_in", scaled=False)
            q, k, v, z = parts(made, *widths)
            mixed = b.join(b.join(q, k, heads=1), v, heads=1)
        else:
            mixed = decoder.product(b, catalog, x, f"{name}attn_qkv", scaled=False)
            z = decoder.product(b, catalog, x, f"{name}attn_gate", scaled=False)
        both = decoder.product(b, catalog, x, f"{name}ssm_ba", scaled=False)
        beta, alpha = parts(both, each, each)
        alpha = b.shift(alpha, f"{name}ssm_dt.bias")
        unit_eps = eps if catalog.kind == "gguf" else 1e-6
        y = qwen35.rule(b, d, kept, i, (mixed, beta, alpha), eps, unit_eps)
        return decoder.product(b, catalog, b.glu(z, y, "silu"), f"{name}ssm_out", scaled=False)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Qwen3-Next file; blocks that predict further tokens are not used."""
    c = read_config(file, architecture, context, head_dim=256, experts=True)
    c, further = decoder.without_further(c)
    decoder.check_activation(c, "silu")
    d, attending = replace(qwen35.read_delta(c), tiled=False), qwen35.attends(c)
    m = experts.read_mixture(c, renormalise=True, names=qwen35.NAMES)
    if m is None:
        raise ConfigError(f"'{c.keys.find('experts')[0]}' is missing: Qwen3-Next has experts")
    full = [i for i in range(c.layers) if attending[i]]
    rest = [i for i in range(c.layers) if not attending[i]]
    apart = [i for i in rest if f"blk.{i}.attn_qkv.weight" in file.tensors]
    fused = [i for i in rest if i not in apart]
    tensors = {
        **qwen35.frame(c),
        **on_layers(qwen35.attention_tensors(c), full),
        **on_layers(delta_tensors(c, d, fused=False), apart),
        **on_layers(delta_tensors(c, d, fused=True), fused),
        **experts.mixture_tensors(c, m),
    }
    both = (rf"blk\.{i}\.ssm_in\..*" for i in apart)
    unused = (*decoder.harmless(c), further, *both)
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    rope, eps, kept = read_rope(c, "neox"), decoder.rms_eps(c), Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attending[i]:
            h = qwen35.attention(b, c, catalog, kept, h, i, rope, eps)
        else:
            h = delta(b, d, catalog, kept, h, i, eps)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.post_attention_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
