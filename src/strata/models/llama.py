"""Llama and what shares its layers: Llama 1 to 3, Mistral, SmolLM, Yi and many more.

Pre-norm RMSNorm, grouped-query attention with rotary positions, SwiGLU (arXiv:2307.09288); Mistral
adds a sliding window (arXiv:2310.06825), Mixtral experts (arXiv:2401.04088).
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import Config, read_config
from strata.models.rope import Style, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


def rope_style(file: ModelFile) -> Style:
    """GGUF converters permute q and k of this family so that rotated pairs are neighbours."""
    return "interleaved" if file.kind == "gguf" else "neox"


MIXTRAL = experts.HuggingFaceNames("block_sparse_moe", gate="w1", up="w3", down="w2")


def mixture(c: Config) -> experts.Mixture | None:
    """Mixtral's experts; None in a model without."""
    return experts.read_mixture(c, renormalise=True, names=MIXTRAL)


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Llama-like model."""
    bias, m = c.keys.flag("attention_bias", False), mixture(c)
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **(
            experts.mixture_tensors(c, m)
            if m
            else decoder.gated_tensors(c, bias=c.keys.flag("mlp_bias", False))
        ),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Llama: every layer sees all keys."""
    return _build(file, read_config(file, architecture, context))


def build_windowed(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Mistral: every layer has the sliding window that the file states, if any."""
    c = read_config(file, architecture, context, experts=True)
    return _build(file, decoder.with_windows(c, c.keys.integer("window", 0, low=0), 0))


def _build(file: ModelFile, c: Config) -> Model:
    m = mixture(c)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, rope_style(file), factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(
        c,
        catalog,
        rope,
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i, scaled=True),
    )
