"""Gemma 2: norms before and after each half of a layer, soft caps, a window on every other layer.
VaultGemma (arXiv:2510.15001) has the norms before alone.

Source: arXiv:2408.00118. The pieces that Gemma 3 shares are public here.
"""

from __future__ import annotations

import math

import numpy as np

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import Rope, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model
from strata.program.model import Transform

# Hugging Face files hold these norms' weights minus 1; GGUF converters add it back.
SHIFTED: Transform = "add_one"
GELU = "gelu_pytorch_tanh"
NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_27B_LAYERS = 46
_BARE = "VaultGemmaForCausalLM"


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Gemma 2 model."""
    bias = c.keys.flag("attention_bias", False)
    norms = {
        n: s for n, s in NORMS.items() if not (n.startswith("post_") and c.architecture == _BARE)
    }
    return {
        **decoder.frame_tensors(c, SHIFTED),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, SHIFTED, **norms),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.gated_tensors(c),
    }


def score_scale(c: Config, layers_of_27b: int) -> float:
    """1 / sqrt(query_pre_attn_scalar), which GGUF files leave to the size of the model.

    It is the head's width except in the 27B models, where it is width / heads.
    """
    scalar = c.keys.number("query_scalar", 256.0, low=1e-6)
    if c.keys.kind == "gguf":
        scalar = c.width // c.heads if c.layers == layers_of_27b else c.head_dim
    return 1 / math.sqrt(scalar)


def sandwich_model(
    c: Config,
    catalog: Catalog,
    ropes: list[Rope],
    *,
    scale: float,
    softcap: float,
    logit_softcap: float,
    qk_norm: bool,
) -> Model:
    """A model of Gemma's layers; ``ropes`` has one entry a layer."""
    decoder.check_activation(c, GELU)
    eps = decoder.rms_eps(c)

    def after(b: Builder, x: str, name: str) -> str:
        return b.rms_norm(x, name, eps) if catalog.has(name) else x

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        h = decoder.attention(
            b,
            c,
            catalog,
            h,
            i,
            rope=ropes[i],
            scale=scale,
            softcap=softcap,
            norm_eps=eps if qk_norm else None,
        )
        x = b.add(x, after(b, h, f"blk.{i}.post_attention_norm.weight"))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        h = decoder.gated(b, catalog, h, i, "gelu_tanh")
        return b.add(x, after(b, h, f"blk.{i}.post_ffw_norm.weight"))

    def logits(b: Builder, x: str) -> str:
        x = b.rms_norm(x, "output_norm.weight", eps)
        return b.softcap(decoder.head(b, c, x), logit_softcap)

    # Both transformers and llama.cpp scale embeddings by sqrt(width) as a float32.
    root = float(np.float32(math.sqrt(c.width)))
    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", root),
        layer=layer,
        head=logits,
    )


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Gemma 2 file."""
    c = read_config(file, architecture, context, tied=True, head_dim=256)
    window = c.keys.integer("window", 0 if c.keys.stated("window") else 4096, low=0)
    c = decoder.with_windows(c, window, 2)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", factors=decoder.rope_factors(c, catalog))
    cap = 0.0 if c.keys.stated("attention_softcap") else 50.0
    logit_cap = 0.0 if c.keys.stated("logit_softcap") else 30.0
    return sandwich_model(
        c,
        catalog,
        [rope] * c.layers,
        scale=score_scale(c, _27B_LAYERS),
        softcap=c.keys.number("attention_softcap", cap),
        logit_softcap=c.keys.number("logit_softcap", logit_cap),
        qk_norm=False,
    )
