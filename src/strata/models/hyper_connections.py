"""Hyper-connections: the residual is several streams side by side, of which each half of a layer
reads a mixture and to each of which it adds its part (arXiv:2409.19606).

Here without the matrix that mixes the streams among themselves, as Hunyuan 4 has them.
"""

from __future__ import annotations

from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.tensors import Part, Tensor
from strata.program import Builder
from strata.records import dataclass


@dataclass(frozen=True)
class Streams:
    """How many streams of which width; weights are sigmoids with ``eps`` added, those with which
    something is written back are multiplied by ``magnitude`` before."""

    count: int
    width: int
    eps: float
    magnitude: float
    norm_eps: float


def read_streams(c: Config, norm_eps: float) -> Streams:
    """What a file states of its streams."""
    count = c.keys.integer("streams", high=64)
    if count * c.width > MAX_WIDTH:
        key = c.keys.find("streams")[0]
        raise ConfigError(f"'{key}' is {count}: streams of {c.width} are {MAX_WIDTH} at most")
    eps = c.keys.number("stream_eps", high=1.0)
    magnitude = c.keys.number("stream_magnitude", high=1e3)
    return Streams(count, c.width, eps, magnitude, norm_eps)


def tensors(s: Streams) -> dict[str, Tensor]:
    """Of the halves of every layer, and of the head."""
    out = _triple("output_hc", ("hc_head.hc_head", "hc_head.hc_pre.hc_head"), s, s.count, 1)
    for half, theirs in (("attn", "attn"), ("ffn", "mlp")):
        stored = f"layers.{{i}}.hc_{theirs}_layer."
        names = (f"{stored}hc_pre.hc", f"{stored}hc")
        out |= _triple(f"blk.{{i}}.hc_{half}", names, s, 2 * s.count, 2)
    return out


def _triple(
    name: str, stored: tuple[str, str], s: Streams, rows: int, scales: int
) -> dict[str, Tensor]:
    """Under one of two names in directories."""
    shapes = {"fn": (rows, s.count * s.width), "base": (rows,), "scale": (scales,)}
    one, other = stored
    return {
        f"{name}_{part}.weight": Tensor(
            f"{{p}}{one}_{part}",
            shape,
            part=Part("", f"{{p}}{other}_{part}", 0, shape[0]),
            unit_axes=part == "fn",
        )
        for part, shape in shapes.items()
    }


def spread(b: Builder, x: str, count: int) -> str:
    """x once for every stream."""
    out = x
    for _ in range(count - 1):
        out = b.join(out, x, heads=1)
    return out


def read(b: Builder, streams: str, name: str, s: Streams) -> tuple[str, str]:
    """What goes into a half, and the weights with which each stream takes what it gives."""
    weights = _weights(b, streams, name, s)
    own = b.columns(weights, head_dim=2 * s.count, start=0, width=s.count)
    back = b.columns(weights, head_dim=2 * s.count, start=s.count, width=s.count)
    return _reduced(b, streams, own, s), b.scale(back, s.magnitude)


def last(b: Builder, streams: str, s: Streams) -> str:
    """What goes into the head."""
    return _reduced(b, streams, _weights(b, streams, "output_hc", s), s)


def write(b: Builder, streams: str, x: str, weights: str, s: Streams) -> str:
    """The streams with what a half gave added to each."""
    wide = spread(b, x, s.count)
    return b.add(streams, _weighed(b, wide, weights, s))


def _weights(b: Builder, streams: str, name: str, s: Streams) -> str:
    even = b.rms_norm(streams, None, s.norm_eps, s.count * s.width)
    with b.unit("streams"):
        mixed = b.matmul(even, f"{name}_fn.weight")
    mixed = b.scale_by(mixed, f"{name}_scale.weight")
    return b.activation(b.shift(mixed, f"{name}_base.weight"), "sigmoid")


def _weighed(b: Builder, streams: str, weights: str, s: Streams) -> str:
    """Each stream times its weight and ``eps``."""
    return b.add(b.mul(streams, weights), b.scale(streams, s.eps))


def _reduced(b: Builder, streams: str, weights: str, s: Streams) -> str:
    """The sum of the weighed streams."""
    weighed = _weighed(b, streams, weights, s)
    parts = [
        b.columns(weighed, head_dim=s.count * s.width, start=i * s.width, width=s.width)
        for i in range(s.count)
    ]
    out = parts[0]
    for part in parts[1:]:
        out = b.add(out, part)
    return out
