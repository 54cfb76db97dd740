"""Frozen dataclasses as JSON and back, exactly; what comes from a file is checked by field."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from strata.errors import StrataError

T = TypeVar("T")


class ValueFileError(StrataError):
    """JSON that does not describe the value it should: says which field, and what was expected."""


def to_json(value: Any) -> Any:
    """A dataclass of numbers, text, truth values, tuples and dataclasses as plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """The ``kind`` that ``to_json`` made ``data`` of.

    Fields with a default may be missing. A field ``version`` says what the others mean: its default
    is the only one that can be read. Raises ValueFileError for another version, and for a field
    that is missing, unknown, of another type or not finite; ``where`` names the place in messages.
    """
    return cast(T, _read(kind, data, where or kind.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_fields(cast(Any, kind), data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _read_tuple(arguments, data, where)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in arguments if a is not type(None)]
        return None if data is None else _read(inner[0], data, where)
    if origin is Literal:
        if data not in arguments:
            raise _wrong(where, data, " or ".join(repr(a) for a in arguments))
        return data
    if kind is float and type(data) in (int, float) and math.isfinite(data):
        return float(data)
    if type(data) is not kind or kind is float:
        raise _wrong(where, data, "a finite number" if kind is float else f"a {kind.__name__}")
    return data


def _read_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _wrong(where, data, "a list")
    if arguments[-1:] == (...,):
        arguments = arguments[:1] * len(data)
    if len(data) != len(arguments):
        raise _wrong(where, data, f"a list of {len(arguments)}")
    return tuple(
        _read(a, item, f"{where}[{i}]")
        for i, (a, item) in enumerate(zip(arguments, data, strict=True))
    )


def _read_fields(kind: type[Any], data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong(where, data, "an object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if "version" in fields and "version" in data:
        found, known = data["version"], fields["version"].default
        if found != known:
            raise ValueFileError(
                f"{where} has format version {found!r}, and only version {known} is known: "
                "make it anew"
            )
    if unknown := sorted(set(data) - set(fields), key=str):
        raise ValueFileError(f"{where}: there is no field {unknown[0]!r}")
    required = (n for n, f in fields.items() if f.default is dataclasses.MISSING)
    if missing := [name for name in required if name not in data]:
        raise ValueFileError(f"{where}: the field {missing[0]!r} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{n: _read(hints[n], value, f"{where}.{n}") for n, value in data.items()})


def _wrong(where: str, data: Any, expected: str) -> ValueFileError:
    shown = repr(data)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ValueFileError(f"{where} is {shown}: {expected} is expected")
