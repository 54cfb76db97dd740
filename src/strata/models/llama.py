"""Llama and what shares its layers: Llama 1 to 3, Mistral, SmolLM, Yi and many more.

Pre-norm RMSNorm, grouped-query attention with rotary positions, SwiGLU (arXiv:2307.09288); Mistral
adds a sliding window (arXiv:2310.06825).
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

# Buffers that old checkpoints carry along; they follow from the hyperparameters.
HARMLESS = (r".*rotary_emb\.inv_freq", r".*\.attention\.rope\.freqs")


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Llama-like model."""
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        "blk.{i}.attn_norm.weight": Tensor("{p}layers.{i}.input_layernorm.weight", (c.width,)),
        **decoder.attention_tensors(c),
        "blk.{i}.ffn_norm.weight": Tensor(
            "{p}layers.{i}.post_attention_layernorm.weight", (c.width,)
        ),
        **decoder.gated_tensors(c),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Llama-like file."""
    c = read_config(file, architecture, context)
    window = c.keys.integer("window", 0, low=0)
    c = replace(c, windows=(window,) * c.layers)
    eps = c.keys.number("rms_eps", low=1e-12, high=1.0)
    decoder.check_activation(c, "silu")
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c, HARMLESS))
    # GGUF converters permute q and k of this family so that rotated pairs are neighbours.
    rope = read_rope(
        c,
        "interleaved" if file.kind == "gguf" else "neox",
        base=10000.0,
        factors=decoder.rope_factors(c, catalog),
    )

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        x = b.add(x, decoder.attention(b, c, catalog, h, i, rope=rope))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        return b.add(x, decoder.gated(b, catalog, h, i, "silu"))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight"),
        layer=layer,
        head=lambda b, x: decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps)),
    )
