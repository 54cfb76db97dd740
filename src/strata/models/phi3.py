"""Phi-3 and Phi-4: Llama's layers with fused projections, partial and long rope.

Sources: arXiv:2404.14219, arXiv:2402.13753 (LongRoPE), the Phi-3 configuration of transformers.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Model


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Phi-3 model: gate and up are one tensor, as are q, k and v."""
    fused = "blk.{i}.ffn_up.weight", "{p}layers.{i}.mlp.gate_up_proj.weight"
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        "blk.{i}.ffn_gate.weight": Tensor(None, (c.ffn, c.width), part=Part(*fused, 0, 2 * c.ffn)),
        "blk.{i}.ffn_up.weight": Tensor(
            None, (c.ffn, c.width), part=Part(*fused, c.ffn, 2 * c.ffn), apart=False
        ),
        "blk.{i}.ffn_down.weight": Tensor("{p}layers.{i}.mlp.down_proj.weight", (c.width, c.ffn)),
        **decoder.scale_tensors(c, "ffn_gate", fused="ffn_up"),
        **decoder.scale_tensors(c, "ffn_up"),
        **decoder.scale_tensors(c, "ffn_down"),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Phi-3 file."""
    c = read_config(file, architecture, context)
    c = decoder.with_windows(c, c.keys.integer("window", 0, low=0), 0)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    return decoder.pre_norm_model(c, catalog, rope)
