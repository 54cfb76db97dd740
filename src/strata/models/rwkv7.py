"""RWKV-7 (arXiv:2503.14456), and ARWKV7: its attention in the place of Qwen 2's.

The values of the first layer are mixed into those of all others: they lie beside the activations.
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, rwkv
from strata.models.config import MAX_WIDTH, Config
from strata.models.rwkv import Rwkv, Shapes
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model

_ORDER = "rwkvag"
_SLOWEST = -math.exp(-0.5)
_UNIT_EPS = 1e-24


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an RWKV-7 file."""
    return _build(file, *rwkv.read(file, architecture, context, qwen=False))


def build_qwen(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an ARWKV7 file, which may have no gate and no norm of heads."""
    return _build(file, *rwkv.read(file, architecture, context, qwen=True))


def _build(file: ModelFile, c: Config, s: Rwkv) -> Model:
    # Writers differ in whether the first layer, which has nothing to mix in, has the weights of it.
    unused = (*decoder.harmless(c), r"blk\.0\.time_mix_v[012]\.weight")
    gate = c.keys.integer("gate_rank", 0, low=0, high=MAX_WIDTH)
    catalog = Catalog(file, _tensors(c, s, gate), c.layers, harmless=unused)
    kept = Kept()

    def mix(b: Builder, x: str, h: str, i: int) -> str:
        with b.unit("attention"):
            return _mix(b, c, s, catalog, kept, x, h, i, gated=gate > 0)

    return rwkv.assemble(c, s, catalog, kept, mix, gated=False, streams=2)


def _tensors(c: Config, s: Rwkv, gate: int) -> dict[str, Tensor]:
    width, name = c.width, "time_mix_"
    ranks = {"w": rwkv.rank(c, "decay_rank"), "a": rwkv.rank(c, "iclr_rank")}
    ranks["v"] = rwkv.rank(c, "value_rank")
    vectors = (f"{name}{part}.weight" for part in ("w0", "a0", "v0", "k_k", "k_a", "r_k"))
    mixer: Shapes = rwkv.vectors(*vectors, width=width)
    for part, rank in {**ranks, **({"g": gate} if gate else {})}.items():
        mixer[f"{name}{part}1.weight"] = (rank, width)
        mixer[f"{name}{part}2.weight"] = (width, rank)
    for product in ("receptance", "key", "value", "output"):
        mixer[f"{name}{product}.weight"] = (width, width)
    norms = rwkv.vectors(f"{name}ln.weight", f"{name}ln.bias", width=width)
    made = rwkv.tensors(c, s, {**mixer, **norms}, gated=False, optional=tuple(norms) * s.qwen)
    values = {key: made.pop(key) for key in (f"blk.{{i}}.{name}v{n}.weight" for n in "012")}
    order = _ORDER if gate else _ORDER[:-1]
    amounts = rwkv.amounts(c, order, len(order))
    return {**made, **amounts, **on_layers(values, range(1, c.layers))}


def _mix(
    b: Builder,
    c: Config,
    s: Rwkv,
    catalog: Catalog,
    kept: Kept,
    x: str,
    h: str,
    i: int,
    *,
    gated: bool,
) -> str:
    name = f"blk.{i}.time_mix_"
    by = rwkv.shifted(b, kept, h, c.width)
    parts = {
        part: rwkv.blend(b, h, by, f"{name}lerp_{part}.weight")
        for part in (_ORDER if gated else _ORDER[:-1])
    }

    def small(part: str, between: str | None = None, *, bias: bool = True) -> str:
        names = (f"{name}{part}1.weight", f"{name}{part}2.weight")
        return rwkv.chain(
            b, parts[part], *names, f"{name}{part}0.weight" if bias else None, between
        )

    r = b.matmul(parts["r"], f"{name}receptance.weight")
    k = b.matmul(parts["k"], f"{name}key.weight")
    v = b.matmul(parts["v"], f"{name}value.weight")
    w = b.activation(b.scale(b.activation(small("w", "tanh"), "sigmoid"), _SLOWEST), "exp")
    rate = b.activation(small("a"), "sigmoid")
    first = v
    if i:
        first = b.columns(x, head_dim=2 * c.width, start=c.width, width=c.width)
        apart = b.add(first, b.scale(v, -1.0))
        v = b.add(v, b.mul(apart, b.activation(small("v"), "sigmoid")))
    unit = b.l2_norm(b.scale_by(k, f"{name}k_k.weight"), s.dim, _UNIT_EPS)
    less = b.scale_by(k, f"{name}k_a.weight")
    k = b.add(k, b.add(b.mul(rate, less), b.scale(less, -1.0)))
    operands = (r, w, k, v, b.scale(unit, -1.0), b.mul(unit, rate))
    y = b.wkv7(*operands, layer=kept.matrices(s.heads, s.dim, s.dim), heads=s.heads)
    if catalog.has(f"{name}ln.weight"):
        y = rwkv.each_head(b, s, y, i)
    # What a row adds for itself.
    bonus = b.group_sum(b.scale_by(b.mul(k, r), f"{name}r_k.weight"), s.dim)
    y = b.add(y, b.mul(v, bonus))
    if gated:
        y = b.mul(y, small("g", "sigmoid", bias=False))
    return b.join(b.matmul(y, f"{name}output.weight"), first, heads=1)
