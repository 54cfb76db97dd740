"""Kimi Linear (arXiv:2510.26692): layers of Kimi Delta Attention, every few layers latent attention
without positions; experts. Ling 3 (bailingmoe3): the same with positions, a gate for each head of
the attention, and bounded decays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, deepseek2, experts, kda, latent
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.kda import Kda
from strata.models.latent import Latent
from strata.models.llama import MIXTRAL
from strata.models.rope import Style, read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model

_LING = experts.HuggingFaceNames(selection="gate.expert_bias")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Kimi Linear file."""
    c = read_hybrid(file, architecture, context)
    if not c.keys.flag("latent_bare", True):
        key = c.keys.find("latent_bare")[0]
        raise ConfigError(f"'{key}' is false: attention with positions is not built here")
    gguf = file.kind == "gguf"
    m = experts.read_mixture(
        c,
        scoring="sigmoid",
        renormalise=gguf or c.keys.flag("expert_norm", True),
        dense=0 if gguf else 1,
        names=MIXTRAL,
    )
    return hybrid(file, c, Kda(*kda.read_sizes(c)), m)


def build_ling(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Ling 3 file; blocks that predict further tokens are not used."""
    c = read_hybrid(file, architecture, context)
    gguf = file.kind == "gguf"
    if not gguf:
        stated = {"rope_base": 6e6, "kda_bound": -5.0, "full_interval": 6, "expert_norm": True}
        # Where it is not said apart, heads are as wide as in the attention of others.
        dim = c.keys.find("kda_dim")[1] or c.keys.integer("head_dim")
        c = replace(c, keys=c.keys.assuming(stated).stating({"kda_dim": dim}))
    if not c.keys.flag("kda_safe", True):
        key = c.keys.find("kda_safe")[0]
        raise ConfigError(f"'{key}' is false: only bounded decays are known of this family")
    c, further = decoder.without_further(c)
    m = experts.read_mixture(c, scoring="sigmoid", dense=0 if gguf else 2, names=_LING)
    if m is not None and not m.shared:
        m = replace(m, shared=m.ffn)
    # Directories have the logarithm of what is negated here.
    k = Kda(*kda.read_sizes(c), ("f_a",), ("g_a",), read_bound(c), 1.0 if gguf else -1.0)
    # Positions of several parts are one number for text.
    style: Style = "neox" if all(c.keys.integers("rope_sections", 4, 0)[:2]) else "interleaved"
    return hybrid(file, c, k, m, style=style, gate=True, unused=(further,))


def read_hybrid(file: ModelFile, architecture: str, context: int | None) -> Config:
    """The Config of such a file."""
    return read_config(file, architecture, context, mixed=True, experts=True, latent=True)


def read_bound(c: Config) -> float:
    """The least that the logarithm of a decay may be."""
    return c.keys.number("kda_bound", low=-100.0, high=-1e-6)


def _of_ling(tensor: Tensor) -> Tensor:
    """The tensor by the name that directories of Ling 3 have for it."""
    theirs = tensor.huggingface or ""
    for ours, name in (
        (".self_attn.o_proj.", ".attention.dense."),
        (".self_attn.", ".attention."),
        ("{p}embed_tokens.", "{p}word_embeddings."),
    ):
        theirs = theirs.replace(ours, name)
    return replace(tensor, huggingface=theirs or None)


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
    rope, score_scale = None, 1.0
    if style is not None and file.kind == "gguf":
        rope = read_rope(c, style)
    elif style is not None:
        rope, score_scale = deepseek2.positions(c)
    attending = latent.latent_tensors(c, a)
    if gate:
        attending["blk.{i}.attn_gate.weight"] = Tensor(
            "{p}layers.{i}.self_attn.g_proj.weight", (c.heads, c.width), unit_axes=True
        )
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(attending, [i for i in range(c.layers) if not recurrent[i]]),
        **on_layers(kda.tensors(c, k), [i for i in range(c.layers) if recurrent[i]]),
        **experts.mixture_tensors(c, m),
    }
    if c.architecture == "BailingHybridForCausalLM":
        tensors = {name: _of_ling(tensor) for name, tensor in tensors.items()}
    unused = (*decoder.harmless(c), *kda.UNUSED, r"blk\.\d+\.attn_gate\.scale", *unused)
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    eps, kept = decoder.rms_eps(c), Kept()
    inner_eps = latent.inner_eps(c, eps)
    limits = [c.keys.numbers(name, c.layers, 0.0) for name in ("expert_clamp", "shared_clamp")]

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if recurrent[i]:
            h = kda.mixer(b, k, catalog, kept, h, i, eps)
        else:
            number = kept.add(a.state(c.heads))
            options: dict[str, Any] = {"layer": number, "gated": gate, "scaled": not gate}
            options |= {"rope": rope, "score_scale": score_scale, "eps": inner_eps}
            h = latent.attention(b, c, catalog, a, h, i, **options)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        limit = (limits[0][i], limits[1][i])
        return b.add(x, experts.feed_forward(b, catalog, m, h, i, scaled=False, limits=limit))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
