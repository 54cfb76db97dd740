"""Qwen3 (dense): Llama's layers with RMSNorm on every head of q and k (arXiv:2505.09388)."""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, qwen2
from strata.models.config import Config, read_config
from strata.models.embedding import ranks
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Qwen3 model."""
    bias = c.keys.flag("attention_bias", False)
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        **decoder.gated_tensors(c),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Qwen3 file."""
    c = qwen2.windows(read_config(file, architecture, context, head_dim=128))
    judges = ranks(file)
    wanted = tensors(c)
    if judges:
        # Rows of the head: of yes, of no (Qwen3-Reranker, arXiv:2506.05176).
        wanted["cls.output.weight"] = Tensor(None, (2, c.width))
    catalog = Catalog(file, wanted, c.layers, harmless=(*decoder.harmless(c), r"cls\.output\..*"))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(c, catalog, rope, qk_norm=True, ffn_scaled=True, judges=judges)
