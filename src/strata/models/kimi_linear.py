"""Kimi Linear (arXiv:2510.26692): layers of Kimi Delta Attention, every few layers latent attention
without positions; experts. Ling 3 (bailingmoe3): the same with positions, a gate for each head of
the attention, and bounded decays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts, kda, latent
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.kda import Kda
from strata.models.latent import Latent
from strata.models.rope import Style, read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Kimi Linear file."""
    c = read_hybrid(file, architecture, context)
    m = experts.read_mixture(c, scoring="sigmoid", renormalise=True)
    return hybrid(file, c, Kda(*kda.read_sizes(c)), m)


def build_ling(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Ling 3 file; blocks that predict further tokens are not used."""
    c = read_hybrid(file, architecture, context)
    if not c.keys.flag("kda_safe", True):
        key = c.keys.find("kda_safe")[0]
        raise ConfigError(f"'{key}' is false: only bounded decays are known of this family")
    c, further = decoder.without_further(c)
    m = experts.read_mixture(c, scoring="sigmoid")
    if m is not None and not m.shared:
        m = replace(m, shared=m.ffn)
    k = Kda(*kda.read_sizes(c), ("f_a",), ("g_a",), read_bound(c))
    # Positions of several parts are one number for text.
    style: Style = "neox" if all(c.keys.integers("rope_sections", 4, 0)[:2]) else "interleaved"
    return hybrid(file, c, k, m, style=style, gate=True, unused=(further,))


def read_hybrid(file: ModelFile, architecture: str, context: int | None) -> Config:
    """The Config of such a file, of which only GGUF is read."""
    if file.kind != "gguf":
        raise ConfigError(f"{architecture} is read from GGUF files alone so far: use a GGUF of it")
    return read_config(file, architecture, context, mixed=True, experts=True, latent=True)


def read_bound(c: Config) -> float:
    """The least that the logarithm of a decay may be."""
    return c.keys.number("kda_bound", low=-100.0, high=-1e-6)


def read_widths(file: ModelFile, c: Config) -> tuple[Config, Latent]:
    """Those of the latent attention."""
    absorbed = any(name.endswith(".attn_k_b.weight") for name in file.tensors)
    return latent.read_latent(c, absorbed=absorbed)


def hybrid(
    file: ModelFile,
    c: Config,
    k: Kda,
    m: experts.Mixture | None,
    *,
    style: Style | None = None,
    gate: bool = False,
    unused: tuple[str, ...] = (),
) -> Model:
    """Layers of ``k``, or of latent attention with positions in a ``style``, then of ``m``.

    With ``gate`` what each head gives is multiplied with a number of its own.
    """
    recurrent = kda.recurrent(c)
    c, a = read_widths(file, c)
    rope = None if style is None else read_rope(c, style)
    attending = latent.latent_tensors(c, a)
    if gate:
        attending["blk.{i}.attn_gate.weight"] = Tensor(None, (c.heads, c.width), unit_axes=True)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(attending, [i for i in range(c.layers) if not recurrent[i]]),
        **on_layers(kda.tensors(c, k), [i for i in range(c.layers) if recurrent[i]]),
        **experts.mixture_tensors(c, m),
    }
    unused = (*decoder.harmless(c), *kda.UNUSED, r"blk\.\d+\.attn_gate\.scale", *unused)
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    eps, kept = decoder.rms_eps(c), Kept()
    limits = [c.keys.numbers(name, c.layers, 0.0) for name in ("expert_clamp", "shared_clamp")]

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if recurrent[i]:
            h = kda.mixer(b, k, catalog, kept, h, i, eps)
        else:
            number = kept.add(a.state(c.heads))
            options: dict[str, Any] = {"layer": number, "gated": gate, "scaled": not gate}
            h = latent.attention(b, c, catalog, a, h, i, rope=rope, eps=eps, **options)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        limit = (limits[0][i], limits[1][i])
        return b.add(x, experts.feed_forward(b, catalog, m, h, i, scaled=False, limits=limit))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
