"""How each kind of Op that is no product and no function of single rows becomes native nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import KV_BLOCK
from strata.program import Op, Program
from strata.program.ops.attention import alibi_slopes, main_operands
from strata.records import dataclass


@dataclass(frozen=True)
class Parameters:
    """A Segment's weights, and where RoPE tables come from.

    Matrices are packed (PackedWeight), streamed (WeightPlace) in tiles of ``tile_bytes``, held for
    a while (ExpertMatrix) or looked up in their file (FileRows); vectors are floats. ``calls`` are
    the layers that attend in a sweep, in their order, where not all KV is in memory.
    """

    matrices: Mapping[str, Any]
    floats: Mapping[str, NDArray[np.float32]]
    rope: Callable[[NDArray[np.float32], float, int], Any]
    tile_bytes: int = 0
    calls: list[int] | None = None


@dataclass(frozen=True)
class Building:
    """A Segment that is being built: the native one, its weights, the numbers of its values."""

    native: _native.NodeList
    parameters: Parameters
    ids: Mapping[str, int]
    program: Program


def embed(b: Building, op: Op) -> None:
    """Rows of a table."""
    table = b.parameters.matrices[op.inputs[0]]
    b.native.embed(table, op.attrs["scale"], b.ids[op.output])


def add_positions(b: Building, op: Op) -> None:
    """Rows of a table of positions, added."""
    x, table = op.inputs
    b.native.add_positions(
        b.ids[x], b.parameters.matrices[table], op.attrs["offset"], b.ids[op.output]
    )


def select(b: Building, op: Op) -> None:
    """Rows whose logits are wanted."""
    b.native.select(b.ids[op.inputs[0]], b.ids[op.output])


def rope(b: Building, op: Op) -> None:
    """Rotation by a table of cosines and sines that Ops with equal frequencies share."""
    frequency = np.array(op.attrs["inv_freq"], np.float32)
    if len(op.inputs) > 1:
        frequency = frequency / b.parameters.floats[op.inputs[1]]
    b.native.rope(
        b.ids[op.inputs[0]],
        b.ids[op.output],
        b.parameters.rope(frequency, op.attrs["mscale"], op.attrs["limit"]),
        op.attrs["head_dim"],
        op.attrs["style"] == "interleaved",
    )


def attention(b: Building, op: Op) -> None:
    """Storing keys and values, attention, merging of splits."""
    apart = ("alibi", "sinks", "chosen")
    attrs = {name: value for name, value in op.attrs.items() if name not in apart}
    most = main_operands(op.attrs, len(op.inputs))
    if op.attrs["alibi"]:
        slopes = alibi_slopes(attrs["heads"], op.attrs["alibi"])
        attrs["slopes"] = np.array(slopes, np.float32)
    if op.attrs["sinks"]:
        attrs["sinks"] = b.parameters.floats[op.inputs[most]]
    if op.attrs["beginning"]:
        attrs["q_beginning"] = b.ids[op.inputs[-1]]
    attrs["read"] //= KV_BLOCK
    if op.attrs["chosen"]:
        attrs["chosen"] = b.ids[op.inputs[-1]]
    q, *kv = (b.ids[name] for name in op.inputs[:most])
    k, v = (*kv, None, None)[:2]
    calls, call = b.parameters.calls, None
    if calls is not None:
        call = len(calls)
        calls.append(attrs["layer"])
    b.native.attention(q, k, v, b.ids[op.output], **attrs, call=call)


def top_keys(b: Building, op: Op) -> None:
    """Storing keys, and the choice among them."""
    q, k, *w = (b.ids[name] for name in op.inputs)
    names = ("layer", "block", "local")
    b.native.top_keys(q, k, w[0] if w else -1, b.ids[op.output], *(op.attrs[n] for n in names))


def short_conv(b: Building, op: Op) -> None:
    """Its weight goes in as [taps][width]."""
    x, weight, *bias = op.inputs
    by_tap = b.parameters.floats[weight].reshape(b.program.values[x].width, -1).T
    if (dilation := op.attrs["dilation"]) > 1:
        # Taps of 0 between the others.
        apart = np.zeros(((len(by_tap) - 1) * dilation + 1, by_tap.shape[1]), np.float32)
        apart[::dilation] = by_tap
        by_tap = apart
    b.native.short_conv(
        b.ids[x],
        b.ids[op.output],
        op.attrs["layer"],
        np.ascontiguousarray(by_tap).reshape(-1),
        b.parameters.floats[bias[0]] if bias else None,
    )


def ngrams(b: Building, op: Op) -> None:
    """Rows of a table by hashes of tokens."""
    names = ("layer", "multipliers", "starts", "sizes", "end")
    table = b.parameters.matrices[op.inputs[0]]
    b.native.ngrams(table, b.ids[op.output], *(op.attrs[name] for name in names))


def previous(b: Building, op: Op) -> None:
    """A convolution of two taps, of which the second is 0."""
    (x,) = op.inputs
    width = b.program.values[x].width
    weight = np.repeat(np.array([1, 0], np.float32), width)
    b.native.short_conv(b.ids[x], b.ids[op.output], op.attrs["layer"], weight, None)


def columns(b: Building, op: Op) -> None:
    """A part of each head."""
    x = op.inputs[0]
    head_dim, start, width = (op.attrs[name] for name in ("head_dim", "start", "width"))
    parts = [(b.ids[x], head_dim, start, width)]
    b.native.heads(parts, b.ids[op.output], b.program.values[x].width // head_dim)


def join(b: Building, op: Op) -> None:
    """Heads of one behind those of the other."""
    first, second = (b.program.values[name].width for name in op.inputs)
    heads = op.attrs["heads"]
    each = second if op.attrs["shared"] else second // heads
    stride = 0 if op.attrs["shared"] else each
    parts = [
        (b.ids[op.inputs[0]], first // heads, 0, first // heads),
        (b.ids[op.inputs[1]], stride, 0, each),
    ]
    b.native.heads(parts, b.ids[op.output], heads)


NODES: Mapping[str, Callable[[Building, Op], None]] = {
    build.__name__: build
    for build in (
        *(embed, add_positions, select, rope, attention, top_keys, short_conv, previous),
        *(columns, join, ngrams),
    )
}
