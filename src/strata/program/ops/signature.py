"""What a kind of Op accepts and costs, and the rules that several kinds share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal

from strata.program.program import ProgramError, Shape, Value
from strata.records import dataclass


@dataclass(frozen=True)
class Op:
    """One operation: kind, operands by name, one output, attributes (plain JSON values)."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)


Reads = Literal["all", "rows", "routed"]
"""What a sweep reads of a weight: all of it; the ``rows`` of a table that the step's tokens or
positions name; or, ``routed``, those entries of its first axis (experts) that a router chooses."""

ShapeRule = Callable[[list[Value], Mapping[str, Any]], Shape]
FlopsRule = Callable[[list[Value], Mapping[str, Any], int, int], int]
KeptRule = Callable[[list[Value], Mapping[str, Any]], int]
StateKind = Literal["kv", "recurrent"]


@dataclass(frozen=True)
class Signature:
    """What a kind of Op accepts and costs.

    ``operands`` names the inputs, optional ones end in ``?``. ``attrs`` are the required attribute
    names. ``shape`` gives the output's shape or raises ProgramError. ``flops`` counts floating
    point operations for (operands, attrs, rows, context positions attended per row). ``reads`` says
    how weights among the operands are read, where that is not ``all``.

    ``state`` says which state of its layer the Op touches: ``kv``, which it reads for every
    position that it sees, ``recurrent``, which it reads and writes once a step, or none. ``kept``
    counts the numbers of it: a position's, or a sequence's. ``as_floats`` are weights of two axes
    that are no factors of a product, but read as plain float32 arrays. ``extras`` are further
    operands, of which any may be missing: the attribute ``extras`` names those that are there.
    """

    operands: tuple[str, ...]
    attrs: tuple[str, ...]
    shape: ShapeRule
    flops: FlopsRule
    from_step: tuple[str, ...] = ()
    reads: Mapping[str, Reads] = field(default_factory=dict)
    state: StateKind | None = None
    kept: KeptRule = lambda values, attrs: 0
    as_floats: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


def operand_names(op: Op, signature: Signature) -> tuple[str, ...]:
    """What each input of an Op is."""
    names = tuple(name.rstrip("?") for name in signature.operands)
    if signature.extras:
        return (*names, *op.attrs["extras"])
    # Optional operands come last, and may be missing.
    return names[: len(op.inputs)]


def rows_of(v: Value) -> Shape:
    """All axes but the last."""
    return v.shape[:-1]


def sizes(weight: Value) -> tuple[int, ...]:
    """The shape of a weight, which depends on no step."""
    return tuple(n for n in weight.shape if isinstance(n, int))


def same(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    """The shape that all operands have."""
    del attrs
    first = values[0]
    for other in values[1:]:
        if other.shape != first.shape:
            raise ProgramError(
                f"'{first.name}' {first.shape} and '{other.name}' {other.shape} must match"
            )
    return first.shape


def unary(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    """The shape of the only operand."""
    del attrs
    return values[0].shape


def table_of(value: Value) -> Value:
    """``value`` if it has rows and columns."""
    if len(value.shape) != 2:
        raise ProgramError(f"'{value.name}' {value.shape} is no table of rows")
    return value


def per_element(n: int) -> FlopsRule:
    """So many operations for each element of the first operand."""

    def flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
        del attrs, context
        return n * rows * values[0].width

    return flops
