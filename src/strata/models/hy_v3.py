"""Hunyuan 3 (Hy3): Qwen3's layers with experts that a sigmoid weighs and a bias helps to choose,
beside a shared one; which layers have experts the file's routers tell.

Blocks that predict further tokens are left out.
"""

from __future__ import annotations

from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Model

_NAMES = experts.HuggingFaceNames(
    router="router.gate", shared="shared_mlp", selection="expert_bias"
)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Hunyuan 3 file."""
    c, further = decoder.without_further(read_config(file, architecture, context, experts=True))
    # What config.json does not say: GGUF files do.
    usual: dict[str, Any] = {} if file.kind == "gguf" else {"renormalise": True, "dense": 1}
    width = c.keys.integer("expert_ffn", c.ffn)
    if file.kind != "gguf":
        width *= c.keys.integer("shared_experts", 1)
    width = c.keys.integer("shared_ffn", 0, low=0) or width
    m = experts.read_mixture(c, scoring="sigmoid", shared=width, names=_NAMES, **usual)
    if file.kind == "gguf":
        m = experts.where_routed(c, file, m)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        **experts.mixture_tensors(c, m),
    }
    unused = (*decoder.harmless(c), further, experts.DENSE)
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    return decoder.pre_norm_model(
        c,
        catalog,
        read_rope(c, "neox", factors=decoder.rope_factors(c, catalog)),
        qk_norm=True,
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i),
    )
