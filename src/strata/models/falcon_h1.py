"""Falcon-H1 (arXiv:2507.22448): attention and a Mamba-2 mixer side by side in every layer.

The multipliers of config.json are in the weights of GGUF files.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, state_space
from strata.models.config import read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Falcon-H1 file."""
    c = read_config(file, architecture, context)
    if file.kind != "gguf":
        raise ConfigError("Falcon-H1 is read from GGUF files alone so far: use a GGUF of it")
    sizes = state_space.read_sizes(c, version=2)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm"),
        "blk.{i}.ffn_norm": Tensor(None, (c.width,)),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **state_space.tensors2(c, sizes, "mamba", norm=False),
        **decoder.gated_tensors(c),
    }
    # These may be there; what the family is run with elsewhere does not read them.
    del tensors["blk.{i}.attn_output.bias"]
    harmless = (*decoder.harmless(c), r"rope_freqs\.weight", r"blk\.\d+\.attn_output\.bias")
    catalog = Catalog(file, tensors, c.layers, harmless=harmless)
    rope, eps = read_rope(c, "neox"), decoder.rms_eps(c)
    scale = c.keys.number("attention_scale", 0.0) or None
    kept = state_space.Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        number = kept.kv(c, i)
        attended = decoder.attention(b, c, catalog, h, i, rope=rope, scale=scale, layer=number)
        mixed = state_space.mixer2(b, sizes, catalog, kept, h, i, eps)
        x = b.add(x, b.add(attended, mixed))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm", eps)
        return b.add(x, decoder.gated(b, catalog, h, i, "silu"))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
