"""RWKV-6 (arXiv:2404.05892), and QRWKV6: its attention in the place of Qwen 2's, without the bonus
of the row itself and with heads of keys that several heads of queries share.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder, rwkv
from strata.models.config import Config
from strata.models.errors import ConfigError
from strata.models.rwkv import Rwkv, Shapes
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

_ORDER = "wkvrg"


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an RWKV-6 file."""
    return _build(file, *rwkv.read(file, architecture, context, qwen=False))


def build_qwen(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a QRWKV6 file."""
    return _build(file, *rwkv.read(file, architecture, context, qwen=True))


def _build(file: ModelFile, c: Config, s: Rwkv) -> Model:
    groups = c.kv_heads or s.heads
    if s.heads % groups:
        key = c.keys.find("kv_heads")[0]
        raise ConfigError(f"'{key}' is {groups}, no divisor of {s.heads} heads")
    catalog = Catalog(file, _tensors(c, s, groups), c.layers, harmless=decoder.harmless(c))
    kept = Kept()

    def mix(b: Builder, x: str, h: str, i: int) -> str:
        del x
        with b.unit("attention"):
            return _mix(b, c, s, catalog, kept, h, i, groups)

    return rwkv.assemble(c, s, catalog, kept, mix, gated=True)


def _tensors(c: Config, s: Rwkv, groups: int) -> dict[str, Tensor]:
    width, mixed, decay = c.width, rwkv.rank(c, "mix_rank"), rwkv.rank(c, "decay_rank_6")
    name = "time_mix_"
    mixer: Shapes = {
        **rwkv.vectors(f"{name}lerp_x.weight", f"{name}decay.weight", width=width),
        f"{name}w1.weight": (len(_ORDER) * mixed, width),
        f"{name}w2.weight": (len(_ORDER), width, mixed),
        f"{name}decay_w1.weight": (decay, width),
        f"{name}decay_w2.weight": (width, decay),
        f"{name}receptance.weight": (width, width),
        f"{name}key.weight": (groups * s.dim, width),
        f"{name}value.weight": (groups * s.dim, width),
        f"{name}gate.weight": (width, width),
        f"{name}output.weight": (width, width),
    }
    biases: Shapes = {}
    if s.qwen:
        for part, rows in (
            ("receptance", width),
            ("key", groups * s.dim),
            ("value", groups * s.dim),
        ):
            biases[f"{name}{part}.bias"] = (rows,)
    else:
        mixer |= rwkv.vectors(f"{name}ln.weight", f"{name}ln.bias", width=width)
        mixer[f"{name}first.weight"] = (s.heads, s.dim)
    made = rwkv.tensors(c, s, {**mixer, **biases}, gated=True, optional=tuple(biases))
    return {**made, **rwkv.amounts(c, _ORDER, len(_ORDER))}


def _mix(
    b: Builder, c: Config, s: Rwkv, catalog: Catalog, kept: Kept, x: str, i: int, groups: int
) -> str:
    name = f"blk.{i}.time_mix_"
    by = rwkv.shifted(b, kept, x, c.width)
    # How much of the row before each part gets depends on the row, too.
    more = rwkv.blend(b, x, by, f"{name}lerp_x.weight")
    more = rwkv.chain(b, more, f"{name}w1.weight", f"{name}w2.weight", None, "tanh")
    parts = {}
    for number, part in enumerate(_ORDER):
        amount = b.columns(
            more, head_dim=len(_ORDER) * c.width, start=number * c.width, width=c.width
        )
        amount = b.shift(amount, f"{name}lerp_{part}.weight")
        parts[part] = b.add(x, b.mul(by, amount))

    def made(part: str, product: str) -> str:
        bias = decoder.present(catalog, f"{name}{product}.bias")
        return b.matmul(parts[part], f"{name}{product}.weight", bias)

    r, k, v, gate = made("r", "receptance"), made("k", "key"), made("v", "value"), made("g", "gate")
    names = (f"{name}decay_w1.weight", f"{name}decay_w2.weight", f"{name}decay.weight")
    w = rwkv.chain(b, parts["w"], *names, "tanh")
    state = kept.matrices(s.heads, s.dim, s.dim)
    if s.qwen:
        k, v = (_for_all(b, y, groups, s.heads) for y in (k, v))
        decay = b.activation(b.scale(b.activation(w, "exp"), -1.0), "exp")
        k = b.add(k, b.scale(b.mul(k, decay), -1.0))
        y = b.linear_attention(b.scale(r, s.dim**-0.5), k, v, decay, layer=state, heads=s.heads)
        y = b.mul(y, b.activation(gate, "sigmoid"))
    else:
        y = b.wkv6(r, k, v, w, u=f"{name}first.weight", layer=state, heads=s.heads)
        y = b.glu(gate, rwkv.each_head(b, s, y, i), "silu")
    return b.matmul(y, f"{name}output.weight")


def _for_all(b: Builder, x: str, groups: int, heads: int) -> str:
    """Each of ``groups`` heads as often as heads of queries share it."""
    out = x
    for _ in range(heads // groups - 1):
        out = b.join(out, x, heads=groups)
    return out
