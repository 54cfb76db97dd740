"""Ops that cut rows into heads and put heads together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strata.backends.reference.run import Run
from strata.backends.reference.state import Floats


def columns(x: Floats, head_dim: int, start: int, width: int) -> Floats:
    """Columns start .. start + width of each head of ``head_dim`` columns."""
    heads = x.reshape(len(x), -1, head_dim)
    return np.ascontiguousarray(heads[..., start : start + width]).reshape(len(x), -1)


def join(a: Floats, b: Floats, heads: int, shared: bool) -> Floats:
    """Each head of a with that of b behind it; with all of b if that is ``shared``."""
    first, second = a.reshape(len(a), heads, -1), b.reshape(len(b), 1 if shared else heads, -1)
    second = np.broadcast_to(second, (len(b), heads, second.shape[-1]))
    out: Floats = np.concatenate([first, second], axis=-1).reshape(len(a), -1)
    return out


HEADS: Mapping[str, Run] = {
    "columns": lambda a, x, step, state: columns(x[0], a["head_dim"], a["start"], a["width"]),
    "join": lambda a, x, step, state: join(x[0], x[1], a["heads"], a["shared"]),
}
