"""Llama and what shares its layers: Llama 1 to 3, Mistral, SmolLM, Yi and many more.

Pre-norm RMSNorm, grouped-query attention with rotary positions, SwiGLU (arXiv:2307.09288); Mistral
adds a sliding window (arXiv:2310.06825).
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import Style, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


def rope_style(file: ModelFile) -> Style:
    """GGUF converters permute q and k of this family so that rotated pairs are neighbours."""
    return "interleaved" if file.kind == "gguf" else "neox"


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Llama-like model."""
    bias = c.keys.flag("attention_bias", False)
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.gated_tensors(c, bias=c.keys.flag("mlp_bias", False)),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Llama: every layer sees all keys."""
    return _build(file, read_config(file, architecture, context))


def build_windowed(file: ModelFile, architecture: str, context: int | None) -> Model:
    """A Mistral: every layer has the sliding window that the file states, if any."""
    c = read_config(file, architecture, context)
    return _build(file, decoder.with_windows(c, c.keys.integer("window", 0, low=0), 0))


def _build(file: ModelFile, c: Config) -> Model:
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, rope_style(file), factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(c, catalog, rope, ffn_scaled=True)
