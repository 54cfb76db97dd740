"""MiniMax-01 (arXiv:2501.08313): seven layers of lightning attention, then one of softmax
attention; experts. What is added to each half of a layer is its normed input.

Source of the decays: the paper, and llama.cpp for how they fall from layer to layer.
"""

from __future__ import annotations

import math

import numpy as np

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import Config, read_config
from strata.models.llama import MIXTRAL
from strata.models.qwen35 import attends
from strata.models.rope import read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model


def decays(heads: int, layers: int, i: int, spread: float = 0.0) -> tuple[float, ...]:
    """What of its state each head of layer ``i`` keeps from one position to the next. Where
    transformers counts layers, so much is added to how many there are."""
    first = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
    depth = 1.0 - i / (layers - 1 + spread if layers > 1 else 1) + 1e-5
    slopes = first ** np.arange(1, heads + 1)
    return tuple(float(d) for d in np.exp(-slopes * depth).astype(np.float32))


def lightning_tensors(c: Config) -> dict[str, Tensor]:
    """Of a layer of lightning attention; q, k and v of a head stand together."""
    stored = "{p}layers.{i}.self_attn."
    return {
        "blk.{i}.attn_qkv.weight": Tensor(f"{stored}qkv_proj.weight", (3 * c.q_width, c.width)),
        "blk.{i}.attn_gate.weight": Tensor(f"{stored}output_gate.weight", (c.q_width, c.width)),
        "blk.{i}.attn_norm_2.weight": Tensor(f"{stored}norm.weight", (c.q_width,)),
        "blk.{i}.attn_output.weight": Tensor(f"{stored}out_proj.weight", (c.width, c.q_width)),
        **decoder.scale_tensors(c, "attn_qkv"),
        **decoder.scale_tensors(c, "attn_output"),
    }


def lightning(b: Builder, c: Config, catalog: Catalog, kept: Kept, x: str, i: int) -> str:
    """Linear attention whose output is normed and gated; scales beside its weights are not
    applied, as llama.cpp has it."""
    name, dim = f"blk.{i}.attn_", c.head_dim
    with b.unit("attention"):
        made = b.activation(decoder.product(b, catalog, x, f"{name}qkv", scaled=False), "silu")
        gate = b.activation(b.matmul(x, f"{name}gate.weight"), "sigmoid")
    q, k, v = (b.columns(made, head_dim=3 * dim, start=n * dim, width=dim) for n in range(3))
    layer = kept.matrices(c.heads, dim, dim)
    fixed = decays(c.heads, c.layers, i, 0.0 if catalog.kind == "gguf" else 1e-5)
    y = b.linear_attention(q, k, v, layer=layer, heads=c.heads, decays=fixed)
    y = b.mul(b.rms_norm(y, f"{name}norm_2.weight", decoder.rms_eps(c)), gate)
    with b.unit("attention"):
        return decoder.product(b, catalog, y, f"{name}output", scaled=False)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiniMax-01 file."""
    c = read_config(file, architecture, context, experts=True)
    decoder.check_activation(c, "silu")
    m = experts.read_mixture(c, renormalise=True, names=MIXTRAL)
    attending = attends(c, interval=8)
    full = [i for i in range(c.layers) if attending[i]]
    rest = [i for i in range(c.layers) if not attending[i]]
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **on_layers(decoder.attention_tensors(c, bias=False, out_bias=False), full),
        **on_layers(lightning_tensors(c), rest),
        **experts.mixture_tensors(c, m),
    }
    # Decays as transformers keeps them: they follow from the number of heads and layers.
    unused = (*decoder.harmless(c), r".*\.self_attn\.(slope_rate|(query|key|diagonal)_decay)")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    rope, eps, kept = read_rope(c, "neox"), decoder.rms_eps(c), Kept()
    full_parts, rest_parts, ffn_parts = (_parts(c, name) for name in ("full", "linear", "mlp"))

    def layer(b: Builder, x: str, i: int) -> str:
        x = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attending[i]:
            h = decoder.attention(b, c, catalog, x, i, rope=rope, layer=kept.kv(c, i))
        else:
            h = lightning(b, c, catalog, kept, x, i)
        parts = full_parts if attending[i] else rest_parts
        x = b.add(b.scale(h, parts[1]), b.scale(x, parts[0]))
        x = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        h = experts.feed_forward(b, catalog, m, x, i, scaled=False)
        return b.add(b.scale(h, ffn_parts[1]), b.scale(x, ffn_parts[0]))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)


def _parts(c: Config, name: str) -> tuple[float, float]:
    """With what a residual, and what is added to it, are multiplied."""
    if c.keys.kind == "gguf":
        return c.keys.number("residual_scale"), 1.0
    return c.keys.number(f"{name}_alpha", 1.0), c.keys.number(f"{name}_beta", 1.0)
