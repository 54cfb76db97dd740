"""OLMo Hybrid: three layers of the gated delta rule with norms before both halves, then one of
attention with norms after them, as OLMo 3 has it.

Sources: the arithmetic and the names of transformers. q, k and v are convolved apart, and a head
may write up to twice what its key points at.
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, qwen35
from strata.models.config import Config, read_config
from strata.models.qwen35 import Delta
from strata.models.rope import read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model

_GATED_EPS, _UNIT_EPS = 1e-5, 1e-6
"""Under the norm of what the rule gives, and under those of q and k: no file states them."""


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an OLMo Hybrid directory."""
    c = read_config(file, architecture, context)
    decoder.check_activation(c, "silu")
    d, attending = qwen35.read_delta(c), qwen35.attends(c)
    full = [i for i in range(c.layers) if attending[i]]
    rest = [i for i in range(c.layers) if not attending[i]]
    after = decoder.norm_tensors(
        c,
        post_attention_norm="post_attention_layernorm",
        post_ffw_norm="post_feedforward_layernorm",
    )
    before = decoder.norm_tensors(
        c, attn_norm="attention_layer_norm", ffn_norm="feedforward_layer_norm"
    )
    bias = c.keys.flag("attention_bias", False)
    attention = {
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.qk_norm_tensors(c.q_width, c.kv_width),
    }
    tensors = {
        **decoder.frame_tensors(c),
        **on_layers({**attention, **after}, full),
        **on_layers({**_delta_tensors(c, d), **before}, rest),
        **decoder.gated_tensors(c),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    table = c.keys.raw("rope_parameters") or {}
    turned = c.keys.find("rope_base")[1] is not None or "rope_theta" in table
    rope, eps, kept = read_rope(c, "neox") if turned else None, decoder.rms_eps(c), Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}."
        if not attending[i]:
            h = b.rms_norm(x, f"{name}attn_norm.weight", eps)
            x = b.add(x, _delta(b, c, d, catalog, kept, h, i))
            h = b.rms_norm(x, f"{name}ffn_norm.weight", eps)
            return b.add(x, decoder.gated(b, catalog, h, i, "silu"))
        h = decoder.attention(b, c, catalog, x, i, rope=rope, norm_eps=eps, layer=kept.kv(c, i))
        x = b.add(x, b.rms_norm(h, f"{name}post_attention_norm.weight", eps))
        h = decoder.gated(b, catalog, x, i, "silu")
        return b.add(x, b.rms_norm(h, f"{name}post_ffw_norm.weight", eps))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)


def _widths(d: Delta) -> dict[str, int]:
    return {"q": d.keys, "k": d.keys, "v": d.values}


def _delta_tensors(c: Config, d: Delta) -> dict[str, Tensor]:
    name, stored = "blk.{i}.", "{p}layers.{i}.linear_attn."
    tensors = {
        f"{name}attn_gate.weight": Tensor(f"{stored}g_proj.weight", (d.values, c.width)),
        f"{name}attn_output.weight": Tensor(f"{stored}o_proj.weight", (c.width, d.values)),
        f"{name}ssm_alpha.weight": Tensor(f"{stored}a_proj.weight", (d.heads, c.width)),
        f"{name}ssm_beta.weight": Tensor(f"{stored}b_proj.weight", (d.heads, c.width)),
        f"{name}ssm_a": Tensor(f"{stored}A_log", (d.heads,), transform="negative_exp"),
        f"{name}ssm_dt.bias": Tensor(f"{stored}dt_bias", (d.heads,)),
        f"{name}ssm_norm.weight": Tensor(f"{stored}o_norm.weight", (d.v_dim,)),
    }
    for part, width in _widths(d).items():
        tensors[f"{name}attn_{part}.weight"] = Tensor(
            f"{stored}{part}_proj.weight", (width, c.width)
        )
        tensors[f"{name}ssm_conv1d_{part}.weight"] = Tensor(
            f"{stored}{part}_conv1d.weight", (width, d.taps), unit_axes=True
        )
    return tensors


def _delta(b: Builder, c: Config, d: Delta, catalog: Catalog, kept: Kept, x: str, i: int) -> str:
    """A layer of the delta rule without what is before and after it."""
    name = f"blk.{i}."
    with b.unit("attention"):
        made = [b.matmul(x, f"{name}attn_{part}.weight") for part in "qkv"]
        gate = b.matmul(x, f"{name}attn_gate.weight")
        beta = b.matmul(x, f"{name}ssm_beta.weight")
        decay = b.matmul(x, f"{name}ssm_alpha.weight", f"{name}ssm_dt.bias")
    q, k, v = (
        b.activation(
            b.short_conv(y, f"{name}ssm_conv1d_{part}.weight", layer=kept.rows(d.taps, width)),
            "silu",
        )
        for y, (part, width) in zip(made, _widths(d).items(), strict=True)
    )
    beta = b.activation(beta, "sigmoid")
    beta = b.scale(beta, 2.0) if c.keys.flag("delta_doubled", True) else beta
    y = b.gated_delta(
        b.l2_norm(q, d.k_dim, _UNIT_EPS, 1 / math.sqrt(d.k_dim)),
        b.l2_norm(k, d.k_dim, _UNIT_EPS),
        *(v, b.decay(decay, f"{name}ssm_a"), beta),
        layer=kept.matrices(d.heads, d.k_dim, d.v_dim),
        heads=d.heads,
        key_heads=d.key_heads,
        tiled=d.tiled,
    )
    y = b.glu(gate, b.rms_norm(y, f"{name}ssm_norm.weight", _GATED_EPS), "silu")
    with b.unit("attention"):
        return decoder.product(b, catalog, y, f"{name}attn_output", scaled=False)
