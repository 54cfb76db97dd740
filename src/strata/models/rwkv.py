"""What RWKV's generations share (arXiv:2404.05892, 2503.14456): the row before, mixed in by learned
amounts; what comes out of a head normalised by itself; their own feed-forward, or Qwen 2's gated
one (then RMSNorms instead of LayerNorms). No layer knows positions.
"""

from __future__ import annotations

from collections.abc import Callable

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, Model
from strata.program.ops.scans import MOST_KEYS
from strata.records import dataclass

_GROUP_EPS = 64e-5
Shapes = dict[str, tuple[int, ...]]
TimeMix = Callable[[Builder, str, str, int], str]
"""(builder, what a layer gets, its normalised form, layer) -> what is added to it."""


@dataclass(frozen=True)
class Rwkv:
    """Heads of ``dim`` columns; ``qwen``: the layer around is Qwen 2's; every ``rescale`` layers
    the activations are halved (0: never)."""

    dim: int
    heads: int
    qwen: bool
    rescale: int


def read(
    file: ModelFile, architecture: str, context: int | None, *, qwen: bool
) -> tuple[Config, Rwkv]:
    """The sizes of a file, of which only GGUF is read."""
    if file.kind != "gguf":
        raise ConfigError(f"{architecture} is read from GGUF files alone so far: use a GGUF of it")
    c = read_config(file, architecture, context, mixed=True)
    dim = c.keys.integer("wkv_dim", high=MOST_KEYS)
    if c.width % dim:
        raise ConfigError(f"'{c.keys.find('wkv_dim')[0]}' is {dim}, no divisor of width {c.width}")
    # Files of the early generations count two shifts and do not say so.
    shifts = c.keys.integer("token_shifts", 1 if qwen else 2)
    if shifts != (1 if qwen else 2):
        raise ConfigError(
            f"'{c.keys.find('token_shifts')[0]}' is {shifts}: not known of this model"
        )
    rescale = c.keys.integer("rescale", 0, low=0)
    return c, Rwkv(dim, c.width // dim, qwen, rescale)


def rank(c: Config, name: str) -> int:
    """The width between two small products."""
    return c.keys.integer(name, high=MAX_WIDTH)


def vectors(*names: str, width: int) -> Shapes:
    """Weights of as many numbers."""
    return dict.fromkeys(names, (width,))


def tensors(
    c: Config, s: Rwkv, mixer: Shapes, *, gated: bool, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Of a model: of its ``mixer`` by their names without the layer, and of all around it.
    ``gated``: the feed-forward of RWKV-6, whose outcome is gated."""
    names: Shapes = {**mixer, **vectors("attn_norm.weight", width=c.width)}
    out: dict[str, Tensor] = decoder.frame_tensors(c)
    if s.qwen:
        names["ffn_norm.weight"] = (c.width,)
        out |= decoder.gated_tensors(c)
    else:
        names |= vectors("attn_norm.bias", "attn_norm_2.weight", "attn_norm_2.bias", width=c.width)
        names["channel_mix_lerp_k.weight"] = (c.width,)
        names["channel_mix_key.weight"] = (c.ffn, c.width)
        names["channel_mix_value.weight"] = (c.width, c.ffn)
        if gated:
            names["channel_mix_lerp_r.weight"] = (c.width,)
            names["channel_mix_receptance.weight"] = (c.width, c.width)
        for name in ("token_embd_norm.weight", "token_embd_norm.bias", "output_norm.bias"):
            out[name] = Tensor(None, (c.width,))
    for name, shape in names.items():
        out[f"blk.{{i}}.{name}"] = Tensor(
            None, shape, name in optional, unit_axes=name.endswith("weight")
        )
    return out


def amounts(c: Config, order: str, count: int) -> dict[str, Tensor]:
    """How much of the row before goes into each of ``order``: kept as one tensor of ``count``
    rows, or apart."""
    name = "blk.{i}.time_mix_lerp_"
    return {
        f"{name}{part}.weight": Tensor(
            None,
            (1, c.width),
            part=Part(f"{name}fused.weight", "", number, count),
            unit_axes=True,
        )
        for number, part in enumerate(order)
    }


def shifted(b: Builder, kept: Kept, x: str, width: int) -> str:
    """The row before less this one."""
    return b.add(b.previous(x, layer=kept.rows(2, width)), b.scale(x, -1.0))


def blend(b: Builder, x: str, by: str, amount: str) -> str:
    """x and, as much as a weight says, what ``shifted`` gave."""
    return b.add(x, b.scale_by(by, amount))


def chain(
    b: Builder, x: str, first: str, second: str, bias: str | None, between: str | None
) -> str:
    """Two small products, with a function between them."""
    x = b.matmul(x, first)
    return b.matmul(x if between is None else b.activation(x, between), second, bias)


def each_head(b: Builder, s: Rwkv, x: str, i: int) -> str:
    """LayerNorm of each head, with a weight and a bias of all columns."""
    name = f"blk.{i}.time_mix_ln"
    x = b.layer_norm(x, None, None, _GROUP_EPS, s.dim)
    return b.shift(b.scale_by(x, f"{name}.weight"), f"{name}.bias")


def assemble(
    c: Config,
    s: Rwkv,
    catalog: Catalog,
    kept: Kept,
    mix: TimeMix,
    *,
    gated: bool,
    streams: int = 1,
) -> Model:
    """The Model of layers of ``mix`` and a feed-forward. With two ``streams`` there is a second
    value between layers beside what they add to: the first half is theirs, the second is ``mix``'s,
    which gets and gives both."""
    eps = decoder.rms_eps(c) if s.qwen else c.keys.number("layer_norm_eps", low=1e-12, high=1.0)

    def norm(b: Builder, x: str, name: str) -> str:
        if s.qwen:
            return b.rms_norm(x, f"{name}.weight", eps)
        return b.layer_norm(x, f"{name}.weight", f"{name}.bias", eps)

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight")
        x = x if s.qwen else norm(b, x, "token_embd_norm")
        return x if streams == 1 else b.join(x, x, heads=1)

    def layer(b: Builder, x: str, i: int) -> str:
        own = b.columns(x, head_dim=streams * c.width, start=0, width=c.width)
        mixed = mix(b, x, norm(b, own, f"blk.{i}.attn_norm"), i)
        own = b.add(own, b.columns(mixed, head_dim=streams * c.width, start=0, width=c.width))
        if s.qwen:
            h = norm(b, own, f"blk.{i}.ffn_norm")
            own = b.add(own, decoder.gated(b, catalog, h, i, "silu"))
        else:
            own = b.add(own, channel_mix(b, norm(b, own, f"blk.{i}.attn_norm_2"), i))
        if s.rescale and (i + 1) % s.rescale == 0:
            own = b.scale(own, 0.5)
        if streams == 1:
            return own
        other = b.columns(mixed, head_dim=2 * c.width, start=c.width, width=c.width)
        return b.join(own, other, heads=1)

    def channel_mix(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}.channel_mix_"
        by = shifted(b, kept, x, c.width)
        with b.unit("ffn"):
            k = b.matmul(blend(b, x, by, f"{name}lerp_k.weight"), f"{name}key.weight")
            out = b.matmul(b.activation(k, "relu2"), f"{name}value.weight")
            if not gated:
                return out
            r = b.matmul(blend(b, x, by, f"{name}lerp_r.weight"), f"{name}receptance.weight")
        return b.mul(out, b.activation(r, "sigmoid"))

    def head(b: Builder, x: str) -> str:
        x = b.columns(x, head_dim=streams * c.width, start=0, width=c.width)
        return decoder.head(b, c, norm(b, x, "output_norm"))

    return decoder.assemble(
        c, catalog, embed=embed, layer=layer, head=head, state=kept.state, hidden=streams * c.width
    )
