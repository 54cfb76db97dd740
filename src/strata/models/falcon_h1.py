"""Falcon-H1 (arXiv:2507.22448): attention and a Mamba-2 mixer side by side in every layer.

The multipliers of config.json are in the weights of GGUF files.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, state_space
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model
from strata.records import dataclass


@dataclass(frozen=True)
class Multipliers:
    """What values are multiplied by; in GGUF files weights have been."""

    embedding: float
    head: float
    attention: tuple[float, float]
    key: float
    ssm: tuple[float, float]
    parts: tuple[float, ...]
    ffn: tuple[float, ...]


def read_multipliers(c: Config) -> Multipliers:
    """Those that config.json states."""

    def number(name: str) -> float:
        return c.keys.number(name, 1.0, low=-1e6, high=1e6)

    def several(name: str, count: int) -> tuple[float, ...]:
        return tuple(c.keys.numbers(name, count, 1.0, low=-1e6, high=1e6))

    return Multipliers(
        number("embedding_scale"),
        number("head_scale"),
        (number("attention_in_scale"), number("attention_out_scale")),
        number("key_scale"),
        (number("ssm_in_scale"), number("ssm_out_scale")),
        several("ssm_scales", 5) if c.keys.kind != "gguf" else (),
        several("ffn_scales", 2),
    )


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Falcon-H1 file."""
    c = read_config(file, architecture, context)
    decoder.check_activation(c, "silu")
    times, sizes = read_multipliers(c), state_space.read_sizes(c, version=2)
    if c.keys.flag("ssm_normed", False) and c.keys.flag("ssm_norm_first", True):
        key = c.keys.find("ssm_norm_first")[0]
        raise ConfigError(f"'{key}' is true: a norm before the gate is not built")
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm"),
        "blk.{i}.ffn_norm": Tensor("{p}layers.{i}.pre_ff_layernorm.weight", (c.width,)),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **state_space.tensors2(c, sizes, "mamba", norm=False),
        **decoder.gated_tensors(c),
    }
    for name, tensor in tensors.items():
        stored = (tensor.huggingface or "").replace(".mlp.", ".feed_forward.")
        tensors[name] = replace(tensor, huggingface=stored)
    last = replace(tensors["output_norm.weight"], huggingface="{p}final_layernorm.weight")
    tensors["output_norm.weight"] = last
    # These may be there; what the family is run with elsewhere does not read them.
    tensors.pop("blk.{i}.attn_output.bias", None)
    harmless = (*decoder.harmless(c), r"rope_freqs\.weight", r"blk\.\d+\.attn_output\.bias")
    catalog = Catalog(file, tensors, c.layers, harmless=harmless)
    rope, eps = read_rope(c, "neox"), decoder.rms_eps(c)
    scale = c.keys.number("attention_scale", 0.0) or times.key / math.sqrt(c.head_dim)
    kept = state_space.Kept()

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if times.ffn == (1.0, 1.0):
            return decoder.gated(b, catalog, x, i, "silu")
        with b.unit("ffn"):
            gate = b.scale(b.matmul(x, f"blk.{i}.ffn_gate.weight"), times.ffn[0])
            mixed = b.glu(gate, b.matmul(x, f"blk.{i}.ffn_up.weight"), "silu")
            return b.scale(b.matmul(mixed, f"blk.{i}.ffn_down.weight"), times.ffn[1])

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        number = kept.kv(c, i)
        attended = decoder.attention(
            b, c, catalog, b.scale(h, times.attention[0]), i, rope=rope, scale=scale, layer=number
        )
        h = b.scale(h, times.ssm[0])
        mixed = state_space.mixer2(b, sizes, catalog, kept, h, i, eps, times.parts)
        attended, mixed = b.scale(attended, times.attention[1]), b.scale(mixed, times.ssm[1])
        x = b.add(x, b.add(attended, mixed))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm", eps)
        return b.add(x, feed_forward(b, h, i))

    def logits(b: Builder, x: str) -> str:
        x = b.rms_norm(x, "output_norm.weight", eps)
        return b.scale(decoder.head(b, c, x), times.head)

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", times.embedding),
        layer=layer,
        head=logits,
        state=kept.state,
    )
