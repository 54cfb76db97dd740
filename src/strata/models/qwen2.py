"""Qwen2 and Qwen2.5: Llama's layers with biases on q, k and v (arXiv:2407.10671).

Some state a sliding window that only layers from ``max_window_layers`` on would use.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Qwen2 model."""
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=True, out_bias=False),
        **decoder.gated_tensors(c),
        **decoder.last_bias(c),
    }


def windows(c: Config) -> Config:
    """Layers that use a window: none unless config.json turns windows on (GGUF has no key)."""
    if c.keys.kind == "gguf" or not c.keys.flag("windowed", False):
        return c
    window = c.keys.integer("window", 4096)
    if c.keys.stated("layer_types"):
        return decoder.with_windows(c, window, 0)
    full = c.keys.integer("full_layers", 28, low=0)
    return replace(c, windows=tuple(window if i >= full else 0 for i in range(c.layers)))


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Qwen2 file."""
    c = windows(read_config(file, architecture, context))
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(c, catalog, rope)
