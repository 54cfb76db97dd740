"""Kimi Delta Attention (arXiv:2510.26692): the delta rule with a decay for each key dimension.

q, k and v are convolved apart; what makes the decay and the gate may be two small products each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder
from strata.program.ops.scans import MOST_KEYS


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
        c.heads,
        keys.integer("kda_dim", high=min(MOST_KEYS, MAX_WIDTH)),
        keys.integer("delta_taps", low=2, high=64),
    )


def recurrent(c: Config) -> list[bool]:
    """Which layers have no keys and values."""
    return [n == 0 for n in c.keys.integers("kv_heads", c.layers)]


def tensors(c: Config, k: Kda) -> dict[str, Tensor]:
    """The tensors of a layer."""
    name = "blk.{i}."
    out = {
        f"{name}attn_output.weight": Tensor(None, (c.width, k.inner)),
        f"{name}ssm_beta.weight": Tensor(None, (k.heads, c.width), unit_axes=True),
        f"{name}ssm_a": Tensor(None, (k.heads,), unit_axes=True),
        f"{name}ssm_dt.bias": Tensor(None, (k.inner,)),
        f"{name}ssm_norm.weight": Tensor(None, (k.dim,)),
    }
    for number, part in enumerate("qkv"):
        whole = Part(f"{name}attn_qkv.weight", "", number * k.inner, 3 * k.inner)
        out[f"{name}attn_{part}.weight"] = Tensor(None, (k.inner, c.width), part=whole)
        out[f"{name}ssm_conv1d_{part}.weight"] = Tensor(None, (k.inner, k.taps), unit_axes=True)
    for products in (k.decay, k.gate):
        widths = [c.width, *(k.dim,) * (len(products) - 1), k.inner]
        for number, product in enumerate(products):
            shape = (widths[number + 1], widths[number])
            out[f"{name}ssm_{product}.weight"] = Tensor(None, shape)
    return out


UNUSED = (r"blk\.\d+\.attn_(q|k|v|qkv)\.(bias|scale)", r"blk\.\d+\.(ssm_\w+|attn_output)\.scale")
"""Patterns of tensors that files may have and llama.cpp does not read."""


def mixer(b: Builder, k: Kda, catalog: Catalog, kept: Kept, x: str, i: int, eps: float) -> str:
    """A layer without what is before and after it."""
    name = f"blk.{i}.ssm_"

    def chain(products: tuple[str, ...]) -> str:
        y = x
        for product in products:
            y = b.matmul(y, f"{name}{product}.weight")
        return y

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
        b.l2_norm(q, k.dim, eps, 1 / math.sqrt(k.dim)),
        b.l2_norm(k_, k.dim, eps),
        *(v, decay, b.activation(beta, "sigmoid")),
        layer=kept.matrices(k.heads, k.dim, k.dim),
        heads=k.heads,
        key_heads=k.heads,
    )
    y = b.mul(b.rms_norm(y, f"{name}norm.weight", eps), b.activation(gate, "sigmoid"))
    with b.unit("attention"):
        return decoder.product(b, catalog, y, f"blk.{i}.attn_output", scaled=False)
