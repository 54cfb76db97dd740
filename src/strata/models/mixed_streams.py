"""Hyper-connections whose streams are mixed among themselves by a matrix that is nearly doubly
stochastic: Sinkhorn's algorithm makes it of each row (arXiv:2512.24880).
"""

from __future__ import annotations

from strata.models import hyper_connections
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.tensors import Part, Tensor
from strata.program import Builder
from strata.program.ops.streams import MOST_STREAMS
from strata.records import dataclass

_HALVES = ("attn", "ffn")


@dataclass(frozen=True)
class MixedStreams:
    """How many streams of which width, and how often rows and columns of what mixes them are
    divided by their sums, to which ``eps`` is added."""

    count: int
    width: int
    iterations: int
    eps: float
    norm_eps: float

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """What is made of a row, in a file's order: weights to read and to write, the matrix."""
        return ("pre", self.count), ("post", self.count), ("mix", self.count * self.count)


def read_streams(c: Config, norm_eps: float) -> MixedStreams:
    """What a file states of its streams."""
    count = c.keys.integer("streams", high=MOST_STREAMS)
    if count * c.width > MAX_WIDTH:
        key = c.keys.find("streams")[0]
        raise ConfigError(f"'{key}' is {count}: streams of {c.width} are {MAX_WIDTH} at most")
    iterations = c.keys.integer("stream_iterations", high=1000)
    eps = c.keys.number("stream_eps", low=1e-12, high=1.0)
    return MixedStreams(count, c.width, iterations, eps, norm_eps)


def tensors(s: MixedStreams) -> dict[str, Tensor]:
    """Of the halves of every layer: products, biases and scales that files keep as one each."""
    out, rows = {}, sum(rows for _, rows in s.parts)
    for half in _HALVES:
        name, start = f"blk.{{i}}.hc_{half}", 0
        for number, (part, count) in enumerate(s.parts):
            shapes = {"fn": (count, s.count * s.width), "base": (count,), "scale": (1,)}
            for kind, shape in shapes.items():
                at = (number, len(s.parts)) if kind == "scale" else (start, rows)
                whole = Part(f"{name}_{kind}.weight", "", *at)
                out[f"{name}_{part}_{kind}.weight"] = Tensor(None, shape, part=whole, apart=False)
            start += count
    return out


def read(b: Builder, x: str, name: str, s: MixedStreams) -> tuple[str, tuple[str, str]]:
    """What goes into a half, and how what it gives is written back: the weights with which each
    stream takes it, and the matrix that mixes the streams."""
    even = b.rms_norm(x, None, s.norm_eps, s.count * s.width)
    with b.unit("streams"):
        made = [b.matmul(even, f"{name}_{part}_fn.weight") for part, _ in s.parts]
    pre, post, comb = (
        b.shift(b.scale_by(y, f"{name}_{part}_scale.weight"), f"{name}_{part}_base.weight")
        for y, (part, _) in zip(made, s.parts, strict=True)
    )
    # The weights with eps added.
    own = b.mix(x, b.activation(pre, "sigmoid"), s.count)
    own = b.add(own, b.scale(_sum(b, x, s), s.eps))
    matrix = b.sinkhorn(comb, s.count, s.iterations, s.eps)
    return own, (b.scale(b.activation(post, "sigmoid"), 2.0), matrix)


def write(b: Builder, x: str, given: str, back: tuple[str, str], s: MixedStreams) -> str:
    """The streams, mixed, with what a half gave added to each."""
    weights, matrix = back
    wide = hyper_connections.spread(b, given, s.count)
    return b.add(b.mix(x, matrix, s.count), b.mul(wide, weights))


def mean(b: Builder, x: str, s: MixedStreams) -> str:
    """Of the streams, for the head."""
    return b.scale(_sum(b, x, s), 1 / s.count)


def _sum(b: Builder, x: str, s: MixedStreams) -> str:
    width = s.count * s.width
    out = b.columns(x, head_dim=width, start=0, width=s.width)
    for i in range(1, s.count):
        out = b.add(out, b.columns(x, head_dim=width, start=i * s.width, width=s.width))
    return out
