"""OLMo 2 and 3: norms after attention and feed-forward, and over all of q and k.

Sources: arXiv:2501.00656; OLMo 3 adds sliding windows on three layers of four, whose rope is never
scaled (the Olmo3 configuration of transformers).
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of an OLMo 2 model."""
    bias = c.keys.flag("attention_bias", False)
    return {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(
            c,
            post_attention_norm="post_attention_layernorm",
            post_ffw_norm="post_feedforward_layernorm",
        ),
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.qk_norm_tensors(c.q_width, c.kv_width),
        **decoder.gated_tensors(c),
    }


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """An OLMo 2, or an OLMo 3 in a GGUF file, which says so by stating a window."""
    c = read_config(file, architecture, context)
    window = c.keys.integer("window", 0, low=0) if file.kind == "gguf" else 0
    return _build(file, decoder.with_windows(c, window, 4) if window else c)


def build_windowed(file: ModelFile, architecture: str, context: int | None) -> Model:
    """An OLMo 3 in a Hugging Face directory."""
    c = read_config(file, architecture, context)
    return _build(file, decoder.with_windows(c, c.keys.integer("window", 4096), 4))


def _build(file: ModelFile, c: Config) -> Model:
    decoder.check_activation(c, "silu")
    eps = decoder.rms_eps(c)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    base = 500000.0 if any(c.windows) else 10000.0
    full = read_rope(c, "neox", base=base, factors=decoder.rope_factors(c, catalog))
    local = read_local_rope(c, "neox")

    def layer(b: Builder, x: str, i: int) -> str:
        rope = local if c.windows[i] else full
        h = decoder.attention(b, c, catalog, x, i, rope=rope, norm_eps=eps)
        x = b.add(x, b.rms_norm(h, f"blk.{i}.post_attention_norm.weight", eps))
        h = decoder.gated(b, catalog, x, i, "silu")
        return b.add(x, b.rms_norm(h, f"blk.{i}.post_ffw_norm.weight", eps))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight"),
        layer=layer,
        head=lambda b, x: decoder.head(b, c, b.rms_norm(x, "output_norm.weight", eps)),
    )
