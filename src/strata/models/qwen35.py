"""Qwen3.5 and 3.6, with experts or without: three layers of the gated delta rule, then one of
gated attention.

Sources: the Qwen3.5 and Qwen3-Next configurations of transformers; Gated Delta Networks
(arXiv:2412.06464). Value heads that share a key head are neighbours in Hugging Face files, and
`key_heads` apart in GGUF files.
"""

from __future__ import annotations

import math
from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, mtp
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.rope import Rope, read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model
from strata.program.ops.scans import MOST_KEYS
from strata.records import dataclass

NAMES = experts.HuggingFaceNames(shared="shared_expert")

_TYPES = {"linear_attention", "full_attention"}
_NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}


@dataclass(frozen=True)
class Delta:
    """Sizes of a delta-rule layer."""

    heads: int
    key_heads: int
    k_dim: int
    v_dim: int
    taps: int
    tiled: bool

    @property
    def keys(self) -> int:
        """Width of all keys, which is that of all queries."""
        return self.key_heads * self.k_dim

    @property
    def values(self) -> int:
        """Width of all values."""
        return self.heads * self.v_dim


def read_delta(c: Config) -> Delta:
    """The sizes of a file's delta-rule layers."""
    keys, gguf = c.keys, c.keys.kind == "gguf"
    heads = keys.integer("delta_heads", high=MAX_WIDTH)
    key_heads = keys.integer("delta_key_heads", high=MAX_WIDTH)
    k_dim = keys.integer("delta_k_dim", high=MOST_KEYS)
    if gguf:
        v_dim, rest = divmod(keys.integer("delta_inner", high=MAX_WIDTH), heads)
    else:
        v_dim, rest = keys.integer("delta_v_dim", high=MAX_WIDTH), 0
    if rest or v_dim < 1 or heads % key_heads:
        raise ConfigError(f"'{keys.find('delta_heads')[0]}' is {heads}: it fits no keys and values")
    taps = keys.integer("delta_taps", low=2, high=64)
    return Delta(heads, key_heads, k_dim, v_dim, taps, gguf)


def delta_tensors(c: Config, d: Delta) -> dict[str, Tensor]:
    """Projections, convolution and gates of a delta-rule layer."""
    stored = "{p}layers.{i}.linear_attn."
    convolved = 2 * d.keys + d.values
    return {
        "blk.{i}.attn_qkv.weight": Tensor(f"{stored}in_proj_qkv.weight", (convolved, c.width)),
        "blk.{i}.attn_gate.weight": Tensor(f"{stored}in_proj_z.weight", (d.values, c.width)),
        "blk.{i}.ssm_beta.weight": Tensor(f"{stored}in_proj_b.weight", (d.heads, c.width)),
        "blk.{i}.ssm_alpha.weight": Tensor(f"{stored}in_proj_a.weight", (d.heads, c.width)),
        "blk.{i}.ssm_conv1d.weight": Tensor(
            f"{stored}conv1d.weight", (convolved, d.taps), unit_axes=True
        ),
        "blk.{i}.ssm_dt.bias": Tensor(f"{stored}dt_bias", (d.heads,)),
        "blk.{i}.ssm_a": Tensor(f"{stored}A_log", (d.heads,), transform="negative_exp"),
        "blk.{i}.ssm_norm.weight": Tensor(f"{stored}norm.weight", (d.v_dim,)),
        "blk.{i}.ssm_out.weight": Tensor(f"{stored}out_proj.weight", (c.width, d.values)),
        **{
            name: tensor
            for part in ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha", "ssm_out")
            for name, tensor in decoder.scale_tensors(c, part).items()
        },
    }


def delta(
    b: Builder,
    d: Delta,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    eps: float,
    *,
    gate: str = "silu",
) -> str:
    """A layer of the delta rule, whose outcome is multiplied with a function of a gate."""
    name = f"blk.{i}.ssm_"
    with b.unit("attention"):
        mixed = decoder.product(b, catalog, x, f"blk.{i}.attn_qkv")
        z = decoder.product(b, catalog, x, f"blk.{i}.attn_gate")
        beta = decoder.product(b, catalog, x, f"{name}beta")
        if catalog.has(f"{name}alpha.scale"):
            decay = b.shift(decoder.product(b, catalog, x, f"{name}alpha"), f"{name}dt.bias")
        else:
            decay = b.matmul(x, f"{name}alpha.weight", f"{name}dt.bias")
        unit_eps = eps if catalog.kind == "gguf" else 1e-6
        y = rule(b, d, kept, i, (mixed, beta, decay), eps, unit_eps)
        return decoder.product(b, catalog, b.glu(z, y, gate), f"{name}out")


def rule(
    b: Builder,
    d: Delta,
    kept: Kept,
    i: int,
    made: tuple[str, str, str],
    eps: float,
    unit_eps: float,
) -> str:
    """The convolution, the rule and a norm a head, of what products have ``made``: q, k and v
    together, beta and what the decay is of. ``unit_eps`` is under the norms of q and k: llama.cpp
    has there what a file states of the others, transformers 1e-6."""
    name, convolved = f"blk.{i}.ssm_", 2 * d.keys + d.values
    mixed, beta, decay = made
    layer = kept.rows(d.taps, convolved)
    mixed = b.activation(b.short_conv(mixed, f"{name}conv1d.weight", layer=layer), "silu")
    spans = ((0, d.keys), (d.keys, d.keys), (2 * d.keys, d.values))
    q, k, v = (
        b.columns(mixed, head_dim=convolved, start=start, width=width) for start, width in spans
    )
    y = b.gated_delta(
        b.l2_norm(q, d.k_dim, unit_eps, 1 / math.sqrt(d.k_dim)),
        b.l2_norm(k, d.k_dim, unit_eps),
        *(v, b.decay(decay, f"{name}a"), b.activation(beta, "sigmoid")),
        layer=kept.matrices(d.heads, d.k_dim, d.v_dim),
        heads=d.heads,
        key_heads=d.key_heads,
        tiled=d.tiled,
    )
    return b.rms_norm(y, f"{name}norm.weight", eps)


def attention_tensors(c: Config) -> dict[str, Tensor]:
    """As everywhere, but queries have a gate behind each head."""
    bias = c.keys.flag("attention_bias", False)
    tensors = {
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim, "add_one"),
    }
    for kind in ("weight", "bias"):
        name = f"blk.{{i}}.attn_q.{kind}"
        if name in tensors:
            rows, *rest = tensors[name].shape
            tensors[name] = replace(tensors[name], shape=(2 * rows, *rest), part=None)
    return tensors


def attention(
    b: Builder,
    c: Config,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    rope: Rope,
    eps: float,
) -> str:
    """Attention whose output is multiplied with a gate's sigmoid."""
    name, dim = f"blk.{i}.attn_", c.head_dim
    with b.unit("attention"):
        q, k, v = (decoder.product(b, catalog, x, f"{name}{p}") for p in "qkv")
    gate = b.columns(q, head_dim=2 * dim, start=dim, width=dim)
    q = b.columns(q, head_dim=2 * dim, start=0, width=dim)
    q = b.rms_norm(q, f"{name}q_norm.weight", eps)
    k = b.rms_norm(k, f"{name}k_norm.weight", eps)
    q, k = (
        b.rope(
            y,
            head_dim=dim,
            inv_freq=rope.inv_freq,
            style=rope.style,
            mscale=rope.mscale,
            factors=rope.factors,
        )
        for y in (q, k)
    )
    mixed = b.attention(
        *(q, k, v),
        layer=kept.kv(c, i),
        heads=c.heads,
        kv_heads=c.kv_heads,
        k_dim=dim,
        v_dim=dim,
        scale=c.keys.number("attention_scale", 0.0) or 1 / math.sqrt(dim),
    )
    mixed = b.glu(gate, mixed, "sigmoid")
    with b.unit("attention"):
        return decoder.product(b, catalog, mixed, f"{name}output")


def attends(c: Config, *, interval: int = 4) -> list[bool]:
    """Which layers have attention: as the file lists them, else every ``interval``-th."""
    listed = c.keys.texts("layer_types", c.layers, _TYPES)
    if listed is not None:
        return [kind == "full_attention" for kind in listed]
    # The list may go on with blocks that predict further tokens.
    flags = c.keys.flags("recurrent_layers", c.keys.integer("layers"))
    if flags is not None:
        return [not recurrent for recurrent in flags[: c.layers]]
    interval = c.keys.integer("full_interval", interval)
    return [(i + 1) % interval == 0 for i in range(c.layers)]


def frame(c: Config) -> dict[str, Tensor]:
    """What is around and between the layers."""
    return {
        **decoder.frame_tensors(c, "add_one"),
        **decoder.norm_tensors(c, "add_one", **_NORMS),
    }


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a Qwen3.5, with experts or without."""
    attending = attends(c)
    full = [i for i in range(c.layers) if attending[i]]
    rest = [i for i in range(c.layers) if not attending[i]]
    return {
        **frame(c),
        **on_layers(attention_tensors(c), full),
        **on_layers(delta_tensors(c, read_delta(c)), rest),
        **experts.mixture_tensors(c, _mixture(c)),
    }


def _mixture(c: Config) -> experts.Mixture | None:
    return experts.read_mixture(c, renormalise=True, names=NAMES)


def _config(file: ModelFile, architecture: str, context: int | None) -> Config:
    # Where all layers have experts config.json names no other feed-forward.
    routed = Keys(file, architecture).find("experts")[1] is not None
    ratio = 4 if routed and file.kind != "gguf" else None
    return read_config(file, architecture, context, head_dim=256, experts=True, ffn_ratio=ratio)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Qwen3.5 file, with experts or without; blocks that predict further tokens are
    not used."""
    c, further = decoder.without_further(_config(file, architecture, context))
    decoder.check_activation(c, "silu")
    d, attending = read_delta(c), attends(c)
    harmless = (*decoder.harmless(c), further)
    catalog = Catalog(file, tensors(c), c.layers, harmless=harmless)
    rope, eps = read_rope(c, "neox"), decoder.rms_eps(c)
    kept, m = Kept(), _mixture(c)

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attending[i]:
            h = attention(b, c, catalog, kept, h, i, rope, eps)
        else:
            h = delta(b, d, catalog, kept, h, i, eps)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.post_attention_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)


def build_mtp(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The block that predicts further tokens, of a Qwen3.5 or Qwen3-Next file: a layer with
    attention behind the others."""
    c, _ = decoder.without_further(_config(file, architecture, context))
    i = c.layers
    c = replace(c, layers=i + 1, windows=(*c.windows, 0))
    decoder.check_activation(c, "silu")
    m = _mixture(c)
    layers = {
        **decoder.norm_tensors(c, "add_one", **_NORMS),
        **attention_tensors(c),
        **experts.mixture_tensors(c, m),
    }
    # All else of the file is the model's.
    catalog = Catalog(
        file, mtp.block_tensors(c, layers, i, mtp.BESIDE, "add_one"), 1, harmless=(".*",)
    )
    rope, eps, kept = read_rope(c, "neox"), decoder.rms_eps(c), Kept()

    def layer(b: Builder, x: str) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        x = b.add(x, attention(b, c, catalog, kept, h, i, rope, eps))
        h = b.rms_norm(x, f"blk.{i}.post_attention_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i))

    return mtp.block_model(c, catalog, i, layer, eps, kept.state)
