"""Qwen3's mixtures of experts: Qwen3 with routed experts in every layer (arXiv:2505.09388).

Not built: layers without experts that config.json lists (``mlp_only_layers``,
``decoder_sparse_step``); no published model has them.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, experts, qwen2, qwen3
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Qwen3 mixture."""
    dense = experts.without_feed_forward(qwen3.tensors(c))
    return {**dense, **experts.mixture_tensors(c, mixture(c))}


def mixture(c: Config) -> experts.Mixture | None:
    """Its experts; GGUF files do not say that weights are renormalised."""
    return experts.read_mixture(c, renormalise=True if c.keys.kind == "gguf" else None)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Qwen3 mixture."""
    c = qwen2.windows(read_config(file, architecture, context, head_dim=128, experts=True))
    m = mixture(c)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(
        c,
        catalog,
        rope,
        qk_norm=True,
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i),
    )
