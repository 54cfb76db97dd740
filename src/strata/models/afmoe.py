"""AFMoE (Arcee's Trinity): a norm before and after each half, attention with windows and a gate for
each column, experts beside a shared one; every fourth layer has no rotation.

Source: the model card of Trinity and llama.cpp's reading of its files.
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

_NAMES = experts.HuggingFaceNames(router="router.gate", selection="expert_bias")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an AFMoE file."""
    c = read_config(file, architecture, context, experts=True)
    c = decoder.with_windows(c, c.keys.integer("window", 0, low=0), 4)
    gguf = file.kind == "gguf"
    m = experts.read_mixture(c, scoring="sigmoid", renormalise=None if gguf else True, names=_NAMES)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(
            c,
            attn_norm="input_layernorm",
            post_attention_norm="post_attention_layernorm",
            ffn_norm="pre_mlp_layernorm",
            post_ffw_norm="post_mlp_layernorm",
        ),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        "blk.{i}.attn_gate.weight": Tensor(
            "{p}layers.{i}.self_attn.gate_proj.weight", (c.q_width, c.width)
        ),
        **experts.mixture_tensors(c, m),
    }
    unused = (*decoder.harmless(c), r"blk\.\d+\.attn_gate\.scale")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    full, local = read_rope(c, "neox"), read_local_rope(c, "neox", scaled=True)
    eps = decoder.rms_eps(c)
    scale = math.sqrt(c.width) if c.keys.flag("root_scale", gguf) else 1.0

    def layer(b: Builder, x: str, i: int) -> str:
        name, turn = f"blk.{i}.", local if c.windows[i] else full
        h = b.rms_norm(x, f"{name}attn_norm.weight", eps)
        rope = turn if ((i + 1) % 4 if gguf else c.windows[i]) else None
        h = decoder.attention(b, c, catalog, h, i, rope=rope, norm_eps=eps, gate="sigmoid")
        x = b.add(x, b.rms_norm(h, f"{name}post_attention_norm.weight", eps))
        h = b.rms_norm(x, f"{name}ffn_norm.weight", eps)
        h = experts.feed_forward(b, catalog, m, h, i, scaled=False)
        return b.add(x, b.rms_norm(h, f"{name}post_ffw_norm.weight", eps))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", scale),
        layer=layer,
        head=lambda b, x: decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps)),
    )
