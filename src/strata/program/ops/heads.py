"""Ops that cut rows into heads and put heads together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature, rows_of
from strata.program.program import ProgramError, Shape, Value


def _columns(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    (x,) = values
    head_dim, start, width = (attrs[n] for n in ("head_dim", "start", "width"))
    if x.width % head_dim or start < 0 or width < 1 or start + width > head_dim:
        raise ProgramError(
            f"columns: {start} to {start + width} of heads of {head_dim} are not in "
            f"'{x.name}' {x.shape}"
        )
    return (*rows_of(x), x.width // head_dim * width)


def _join(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    a, b = values
    heads, shared = attrs["heads"], attrs["shared"]
    if a.width % heads or (not shared and b.width % heads) or rows_of(a) != rows_of(b):
        raise ProgramError(
            f"join: '{a.name}' {a.shape} and '{b.name}' {b.shape} are not {heads} heads each"
        )
    return (*rows_of(a), a.width + b.width * (heads if shared else 1))


HEADS: Mapping[str, Signature] = {
    # columns start .. start + width of each head of `head_dim` columns
    "columns": Signature(("x",), ("head_dim", "start", "width"), _columns, lambda v, a, r, c: 0),
    # each of `heads` heads of a, and behind it that of b; all of b behind each if b is `shared`
    "join": Signature(("a", "b"), ("heads", "shared"), _join, lambda v, a, r, c: 0),
}
