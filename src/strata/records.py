"""Dataclasses that are made quickly, since a start makes more than a hundred.

The standard library compiles up to six functions for a class, which takes half a millisecond; all
of them were a sixth of what `strata run` took to its first token. Here ``__init__`` is compiled
when it is first called, and the others are made without a compiler. Fields, ``replace`` and
``asdict`` are the library's, and so is what classes do; what it can beside ``frozen`` and ``eq``
is not here, and classes that users may derive from are the library's own. Fields are compared as a
tuple, as the library does up to Python 3.12: what is the same object is equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """``dataclasses.dataclass``, made quickly."""
        if cls is None:
            return lambda cls: _with_methods(cls, frozen=frozen, eq=eq)
        return _with_methods(cls, frozen=frozen, eq=eq)


def _with_methods(cls: Any, *, frozen: bool, eq: bool) -> Any:
    if not cls.__doc__:
        # The library would make one of the signature, which takes longer than all of this.
        cls.__doc__ = cls.__name__
    own = set(vars(cls))
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    methods: dict[str, Any] = {"__init__": _uncompiled(cls, frozen), "__repr__": _repr}
    if eq:
        fields = dataclasses.fields(cls)
        methods["__eq__"] = _eq_of(tuple(f.name for f in fields if f.compare))
        if "__hash__" not in own or ("__eq__" in own and cls.__hash__ is None):
            hashed = tuple(f.name for f in fields if (f.compare if f.hash is None else f.hash))
            cls.__hash__ = _hash_of(hashed) if frozen else None
    if frozen:
        methods["__setattr__"], methods["__delattr__"] = _refusals(cls)
    for name, method in methods.items():
        if name not in own:
            setattr(cls, name, method)
    return cls


def _uncompiled(cls: Any, frozen: bool) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__ = made = _init_of(cls, frozen)
        made(self, *args, **kwargs)

    return __init__


def _init_of(cls: Any, frozen: bool) -> Callable[..., None]:
    names: dict[str, Any] = {"_set": object.__setattr__, "_unset": object()}
    arguments, lines = ["self"], []
    for n, field in enumerate(dataclasses.fields(cls)):
        value = field.name
        made = field.default_factory is not dataclasses.MISSING
        if made:
            names[f"_made{n}"] = field.default_factory
            value = f"_made{n}() if {value} is _unset else {value}" if field.init else f"_made{n}()"
        if field.init:
            default = ""
            if made:
                default = "=_unset"
            elif field.default is not dataclasses.MISSING:
                names[f"_default{n}"] = field.default
                default = f"=_default{n}"
            arguments.append(field.name + default)
        elif not made:
            continue
        lines.append(
            f"_set(self, {field.name!r}, {value})" if frozen else f"self.{field.name} = {value}"
        )
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    body = "\n ".join(lines or ["pass"])
    exec(f"def __init__({', '.join(arguments)}):\n {body}", names)
    init: Callable[..., None] = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


def _values_of(names: tuple[str, ...]) -> Callable[[Any], object]:
    """A tuple of an object's fields."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple(getattr(self, name) for name in names)


def _eq_of(names: tuple[str, ...]) -> Callable[[Any, object], Any]:
    values = _values_of(names)

    def __eq__(self: Any, other: object) -> Any:
        if other.__class__ is self.__class__:
            return values(self) == values(other)
        return NotImplemented

    return __eq__


def _hash_of(names: tuple[str, ...]) -> Callable[[Any], int]:
    values = _values_of(names)
    return lambda self: hash(values(self))


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refusals(cls: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """``__setattr__`` and ``__delattr__`` of a frozen class."""
    names = frozenset(field.name for field in dataclasses.fields(cls))

    def __setattr__(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return __setattr__, __delattr__
