"""Gemma 3 (its language model): Gemma 2's layers with q and k norms and two ropes, no score cap.

Source: arXiv:2503.19786. Five layers of six have a sliding window and a rope base of their own.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, gemma2
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model

_27B_LAYERS = 62


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Gemma 3 language model."""
    norms = decoder.qk_norm_tensors(c.head_dim, c.head_dim, gemma2.SHIFTED)
    return {**gemma2.tensors(c), **norms}


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Gemma 3 file; of a multimodal one, its language model."""
    c = read_config(file, architecture, context, tied=True, head_dim=256)
    if c.keys.flag("bidirectional", False):
        raise ConfigError(
            "'use_bidirectional_attention' is true: an embedding model, which generates nothing"
        )
    # A GGUF file without a window has none; config.json may leave the usual one out.
    unstated = 0 if file.kind == "gguf" or c.keys.stated("window") else 4096
    window = c.keys.integer("window", unstated, low=0)
    c = decoder.with_windows(c, window, 6)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    factors = decoder.rope_factors(c, catalog)
    full = read_rope(c, "neox", base=1e6, factors=factors)
    local = read_local_rope(c, "neox", base=1e4)
    return gemma2.sandwich_model(
        c,
        catalog,
        [local if window else full for window in c.windows],
        scale=gemma2.score_scale(c, _27B_LAYERS),
        softcap=c.keys.number("attention_softcap", 0.0),
        logit_softcap=c.keys.number("logit_softcap", 0.0),
        qk_norm=True,
    )
