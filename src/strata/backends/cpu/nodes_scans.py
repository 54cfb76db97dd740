"""How recurrences with a matrix of state a head, and what is around them, become native nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.cpu.nodes import Building
from strata.program import Op

KINDS = ("ssm_head", "ssm_channels", "gated_delta", "wkv6", "wkv7", "linear")
FUNCTIONS = ("grouped_rms_norm", "l2_norm", "decay", "group_sum", "softmax")


def _scan(
    b: Building,
    op: Op,
    kind: str,
    *,
    heads: int,
    k_dim: int,
    v_dim: int,
    key_heads: int = 0,
    tiled: bool = False,
    by_key: bool = False,
    parameters: Sequence[NDArray[np.float32]] = (),
) -> None:
    """``parameters`` are what never changes, as the kernel wants it."""
    inputs = [name for name in op.inputs if b.program.values[name].role != "weight"]
    b.native.scan(
        KINDS.index(kind),
        [b.ids[name] for name in inputs],
        b.ids[op.output],
        op.attrs["layer"],
        heads,
        key_heads or heads,
        k_dim,
        v_dim,
        tiled,
        by_key,
        [np.ascontiguousarray(p, np.float32).reshape(-1) for p in parameters],
    )


def _widths(b: Building, op: Op) -> list[int]:
    return [b.program.values[name].width for name in op.inputs]


def ssm_scan(b: Building, op: Op) -> None:
    """Where every channel is a head, channels are the columns of one head."""
    width, heads, *_ = _widths(b, op)
    a, d = (b.parameters.floats[name] for name in op.inputs[4:])
    groups, states = op.attrs["groups"], op.attrs["states"]
    if len(b.program.values[op.inputs[4]].shape) == 2:
        by_state = a.reshape(width, states).T
        parameters = (by_state, d)
        _scan(b, op, "ssm_channels", heads=1, k_dim=states, v_dim=width, parameters=parameters)
    else:
        sizes = {"heads": heads, "key_heads": groups, "k_dim": states, "v_dim": width // heads}
        _scan(b, op, "ssm_head", **sizes, parameters=(a, d))


def gated_delta(b: Building, op: Op) -> None:
    """By head, or by head and key dimension where the decay is as wide."""
    q, _, v, decay, heads = _widths(b, op)
    key_heads = op.attrs["key_heads"]
    _scan(
        b,
        op,
        "gated_delta",
        heads=heads,
        key_heads=key_heads,
        k_dim=q // key_heads,
        v_dim=v // heads,
        tiled=op.attrs["tiled"],
        by_key=decay != heads,
    )


def linear_attention(b: Building, op: Op) -> None:
    """By key dimension where the decay is an operand."""
    heads, decays = op.attrs["heads"], op.attrs["decays"]
    q, _, v, *_ = _widths(b, op)
    sizes = {"heads": heads, "k_dim": q // heads, "v_dim": v // heads, "by_key": not decays}
    fixed = np.array(decays, np.float32)
    _scan(b, op, "linear", **sizes, parameters=(fixed,) if decays else ())


def wkv6(b: Building, op: Op) -> None:
    """Heads are square."""
    heads = op.attrs["heads"]
    dim = b.program.values[op.output].width // heads
    u = b.parameters.floats[op.inputs[4]].reshape(-1)
    _scan(b, op, "wkv6", heads=heads, k_dim=dim, v_dim=dim, parameters=(u,))


def wkv7(b: Building, op: Op) -> None:
    """Heads are square."""
    heads = op.attrs["heads"]
    dim = b.program.values[op.output].width // heads
    _scan(b, op, "wkv7", heads=heads, k_dim=dim, v_dim=dim)


def grouped_rms_norm(b: Building, op: Op) -> None:
    """Groups by their width."""
    x, weight = op.inputs
    group = b.program.values[x].width // op.attrs["groups"]
    number, floats = FUNCTIONS.index("grouped_rms_norm"), b.parameters.floats[weight].reshape(-1)
    b.native.grouped(number, b.ids[x], b.ids[op.output], group, eps=op.attrs["eps"], weight=floats)


def l2_norm(b: Building, op: Op) -> None:
    """Groups by their width."""
    number = FUNCTIONS.index("l2_norm")
    x, out, group = b.ids[op.inputs[0]], b.ids[op.output], op.attrs["group"]
    b.native.grouped(number, x, out, group, eps=op.attrs["eps"], factor=op.attrs["scale"])


def decay(b: Building, op: Op) -> None:
    """Each number of the weight is for a group."""
    x, a = op.inputs
    floats = b.parameters.floats[a]
    group = b.program.values[x].width // floats.size
    b.native.grouped(FUNCTIONS.index("decay"), b.ids[x], b.ids[op.output], group, weight=floats)


def group_sum(b: Building, op: Op) -> None:
    """A column for each group."""
    x, out, group = b.ids[op.inputs[0]], b.ids[op.output], op.attrs["group"]
    b.native.grouped(FUNCTIONS.index("group_sum"), x, out, group)


def softmax(b: Building, op: Op) -> None:
    """Of each group."""
    x, out, group = b.ids[op.inputs[0]], b.ids[op.output], op.attrs["group"]
    b.native.grouped(FUNCTIONS.index("softmax"), x, out, group)


SCAN_NODES: Mapping[str, Callable[[Building, Op], None]] = {
    build.__name__: build
    for build in (
        ssm_scan,
        gated_delta,
        linear_attention,
        wkv6,
        wkv7,
        grouped_rms_norm,
        l2_norm,
        decay,
        group_sum,
        softmax,
    )
}
