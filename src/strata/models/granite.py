"""Granite 3: Llama's layers with a multiplier on embeddings, scores, residuals and logits.

Source: IBM's model cards and the Granite configuration of transformers.
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, experts, llama
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Granite file."""
    c = read_config(file, architecture, context, experts=True)
    m = llama.mixture(c)
    catalog = Catalog(file, llama.tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, llama.rope_style(file), factors=decoder.rope_factors(c, catalog))
    # A multiplier that is not stated means: the usual scale in GGUF files, 1 in config.json.
    usual = 1 / math.sqrt(c.head_dim) if file.kind == "gguf" else 1.0
    return decoder.pre_norm_model(
        c,
        catalog,
        rope,
        attention_scale=c.keys.number("attention_scale", 0.0) or usual,
        embedding_scale=c.keys.number("embedding_scale", 0.0) or 1.0,
        residual_scale=c.keys.number("residual_scale", 0.0) or 1.0,
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i, scaled=False),
        logit_scale=1 / c.keys.number("logit_scale", 1.0, low=1e-6),
    )
