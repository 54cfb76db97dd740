"""Kimi Delta Attention (arXiv:2510.26692): the delta rule with a decay for each key dimension.

q, k and v are convolved apart; what makes the decay and the gate may be two small products each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.keys import whole
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder
from strata.program.ops.scans import MOST_KEYS
from strata.records import dataclass


@dataclass(frozen=True)
class Kda:
    """Sizes of a layer, and of what its decay is made.

    ``decay`` and ``gate`` are the names of the products that make them, one behind the other. The
    logarithm of the decay is a * softplus(x), or, where it has a ``bound``,
    bound * sigmoid(``sign`` * a * x).
    """

    heads: int
    dim: int
    taps: int
    decay: tuple[str, ...] = ("f_a", "f_b")
    gate: tuple[str, ...] = ("g_a", "g_b")
    bound: float = 0.0
    sign: float = 1.0

    @property
    def inner(self) -> int:
        """Width of all queries, keys or values."""
        return self.heads * self.dim


def read_sizes(c: Config) -> tuple[int, int, int]:
    """Heads, their width, and the taps of the convolutions."""
    keys = c.keys
    return (
        keys.integer("kda_heads", c.heads, high=MAX_WIDTH),
        keys.integer("kda_dim", high=min(MOST_KEYS, MAX_WIDTH)),
        keys.integer("delta_taps", low=2, high=64),
    )


def recurrent(c: Config) -> list[bool]:
    """Which layers have no keys and values."""
    keys = c.keys
    if keys.kind == "gguf":
        return [n == 0 for n in keys.integers("kv_heads", c.layers)]
    listed = keys.texts("layer_types", c.layers, ("linear_attention", "full_attention"))
    if listed is not None:
        return [kind == "linear_attention" for kind in listed]
    table = keys.raw("linear_attn_config")
    if not isinstance(table, Mapping):
        interval = keys.integer("full_interval")
        return [(i + 1) % interval != 0 for i in range(c.layers)]
    name, full = "linear_attn_config.full_attn_layers", table.get("full_attn_layers")
    if not isinstance(full, list):
        raise ConfigError(f"'{name}': a list of layers is expected, counted from 1")
    counted = {whole(name, n, 1, c.layers) for n in full}
    return [i + 1 not in counted for i in range(c.layers)]


def tensors(c: Config, k: Kda) -> dict[str, Tensor]:
    """The tensors of a layer."""
    name, stored = "blk.{i}.", "{p}layers.{i}.self_attn."
    out = {
        f"{name}attn_output.weight": Tensor(f"{stored}o_proj.weight", (c.width, k.inner)),
        f"{name}ssm_beta.weight": Tensor(
            f"{stored}b_proj.weight", (k.heads, c.width), unit_axes=True
        ),
        f"{name}ssm_a": Tensor(
            f"{stored}A_log", (k.heads,), transform="negative_exp", unit_axes=True
        ),
        f"{name}ssm_dt.bias": Tensor(f"{stored}dt_bias", (k.inner,)),
        f"{name}ssm_norm.weight": Tensor(f"{stored}o_norm.weight", (k.dim,)),
    }
    for number, part in enumerate("qkv"):
        fused = Part(f"{name}attn_qkv.weight", "", number * k.inner, 3 * k.inner)
        out[f"{name}attn_{part}.weight"] = Tensor(
            f"{stored}{part}_proj.weight", (k.inner, c.width), part=fused
        )
        out[f"{name}ssm_conv1d_{part}.weight"] = Tensor(
            f"{stored}{part}_conv1d.weight", (k.inner, k.taps), unit_axes=True
        )
    for products in (k.decay, k.gate):
        widths = [c.width, *(k.dim,) * (len(products) - 1), k.inner]
        for number, product in enumerate(products):
            shape = (widths[number + 1], widths[number])
            theirs = product if len(products) > 1 else product[0]
            out[f"{name}ssm_{product}.weight"] = Tensor(f"{stored}{theirs}_proj.weight", shape)
    return out


UNUSED = (r"blk\.\d+\.attn_(q|k|v|qkv)\.(bias|scale)", r"blk\.\d+\.(ssm_\w+|attn_output)\.scale")
"""Patterns of tensors that files may have and llama.cpp does not read."""


def mixer(
    b: Builder,
    k: Kda,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    eps: float,
    unit_eps: float | None = None,
) -> str:
    """A layer without what is before and after it; ``unit_eps`` under the norms of q and k."""
    name = f"blk.{i}.ssm_"

    def chain(products: tuple[str, ...]) -> str:
        y = x
        for product in products:
            y = b.matmul(y, f"{name}{product}.weight")
        return y

    if unit_eps is None:
        # llama.cpp has the file's epsilon, transformers 1e-6.
        unit_eps = eps if catalog.kind == "gguf" else 1e-6
    with b.unit("attention"):
        made = [b.matmul(x, f"blk.{i}.attn_{part}.weight") for part in "qkv"]
        beta = b.matmul(x, f"{name}beta.weight")
        decay, gate = chain(k.decay), chain(k.gate)
    q, k_, v = (
        b.activation(
            b.short_conv(y, f"{name}conv1d_{part}.weight", layer=kept.rows(k.taps, k.inner)),
            "silu",
        )
        for y, part in zip(made, "qkv", strict=True)
    )
    decay = b.shift(decay, f"{name}dt.bias")
    if k.bound:
        bounded = b.activation(b.scale(b.scale_by(decay, f"{name}a"), k.sign), "sigmoid")
        decay = b.activation(b.scale(bounded, k.bound), "exp")
    else:
        decay = b.decay(decay, f"{name}a")
    y = b.gated_delta(
        b.l2_norm(q, k.dim, unit_eps, 1 / math.sqrt(k.dim)),
        b.l2_norm(k_, k.dim, unit_eps),
        *(v, decay, b.activation(beta, "sigmoid")),
        layer=kept.matrices(k.heads, k.dim, k.dim),
        heads=k.heads,
        key_heads=k.heads,
    )
    y = b.mul(b.rms_norm(y, f"{name}norm.weight", eps), b.activation(gate, "sigmoid"))
    with b.unit("attention"):
        return decoder.product(b, catalog, y, f"blk.{i}.attn_output", scaled=False)
