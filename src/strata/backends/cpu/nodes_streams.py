"""Native nodes over a residual of several streams, and over whole rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from strata.backends.cpu.nodes import Building
from strata.program import Op


def mix(b: Building, op: Op) -> None:
    """Sums of streams."""
    x, weights = op.inputs
    b.native.mix(b.ids[x], b.ids[weights], b.ids[op.output], op.attrs["streams"])


def match_rms(b: Building, op: Op) -> None:
    """Streams as large as another value."""
    x, like = op.inputs
    b.native.match_rms(b.ids[x], b.ids[like], b.ids[op.output], op.attrs["least"])


def sinkhorn(b: Building, op: Op) -> None:
    """Matrices that mix streams."""
    (x,), attrs = op.inputs, op.attrs
    numbers = (attrs["streams"], attrs["iterations"], attrs["eps"])
    b.native.sinkhorn(b.ids[x], b.ids[op.output], *numbers)


def cutoff(b: Building, op: Op) -> None:
    """What is above so many deviations."""
    attrs = op.attrs
    (x,) = op.inputs
    b.native.cutoff(b.ids[x], b.ids[op.output], attrs["deviations"], attrs["spare"])


STREAM_NODES: Mapping[str, Callable[[Building, Op], None]] = {
    build.__name__: build for build in (mix, sinkhorn, match_rms, cutoff)
}
