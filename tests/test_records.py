"""Dataclasses that are made quickly do what the library's do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from strata import records

MAKERS = {"library": dataclasses.dataclass, "records": records.dataclass}


def _classes(make: Any) -> dict[str, Any]:
    @make(frozen=True)
    class Frozen:
        """Fields with and without defaults."""

        a: int
        b: str = "b"
        c: list[int] = field(default_factory=list)
        hidden: int = field(default=0, repr=False, compare=False)
        made: tuple[int, ...] = field(init=False, default_factory=tuple)
        shared: ClassVar[int] = 3

    @make
    class Plain:
        a: int = 1
        b: float = 2.0

    @make(frozen=True)
    class Derived(Frozen):
        d: int = 4

        def __post_init__(self) -> None:
            if self.d < 0:
                raise ValueError("negative")

    @make(frozen=True)
    class One:
        only: object = None

    @make(frozen=True)
    class Empty:
        pass

    @make(eq=False)
    class Same:
        a: int = 1

    @make(frozen=True)
    class OwnMethods:
        a: int = 1

        def __repr__(self) -> str:
            return "own"

        def __hash__(self) -> int:
            return 5

    @make
    class OwnEq:
        a: int = 1

        def __eq__(self, other: object) -> bool:
            return True

    class Child(Plain):  # type: ignore[valid-type,misc]
        pass

    return dict(locals())


def _seen(classes: dict[str, Any]) -> list[str]:
    """What somebody sees who does all that is done with dataclasses."""
    found: list[str] = []

    def see(name: str, made: Any) -> None:
        try:
            found.append(f"{name}: {made()!r}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__} {error}")

    def assign(value: Any, name: str) -> None:
        setattr(value, name, 7)

    def remove(value: Any, name: str) -> None:
        delattr(value, name)

    for name, cls in classes.items():
        if not isinstance(cls, type):
            continue
        see(name, cls)
        see(name, lambda cls=cls: cls(1))
        see(name, lambda cls=cls: cls(2, "x"))
        see(name, lambda cls=cls: cls(a=2))
        see(name, lambda cls=cls: cls(1, a=2))
        see(name, lambda cls=cls: cls(1, 2, 3, 4, 5, 6, 7))
        see(name, lambda cls=cls: cls(unknown=2))
        see(name, lambda cls=cls: [f.name for f in dataclasses.fields(cls)])
        see(name, lambda cls=cls: cls.__match_args__)
        see(name, lambda cls=cls: cls.__init__.__name__)
        for value in (cls(1), cls()) if name not in ("Frozen", "Derived", "Empty") else ():
            see(name, lambda cls=cls, value=value: [value == cls(1), value == cls(), value == 1])
            see(name, lambda cls=cls, value=value: [hash(value) == hash(copy.copy(value))])
            see(name, lambda value=value: assign(value, "a"))
            see(name, lambda value=value: assign(value, "other"))
            see(name, lambda value=value: remove(value, "a"))
            see(name, lambda value=value: dataclasses.replace(value, a=9))
            see(name, lambda value=value: dataclasses.asdict(value))
    see("negative", lambda: classes["Derived"](1, d=-1))
    for name in ("Frozen", "Derived"):
        cls = classes[name]
        value = cls(1, hidden=5)
        see(
            name, lambda cls=cls, value=value: [value == cls(1), value == cls(1, "c"), value.hidden]
        )
        see(name, lambda value=value: value == dataclasses.replace(value, hidden=6))
        see(name, lambda value=value: dataclasses.replace(value, made=()))
        see(name, lambda value=value: hash(value))
        see(name, lambda cls=cls: cls(1, c=()) == cls(1, c=()))
        see(name, lambda cls=cls: hash(cls(1, c=())) == hash(cls(1, c=())))
        see(name, lambda value=value: assign(value, "a"))
        see(name, lambda value=value: dataclasses.asdict(value))
        see(name, lambda cls=cls: cls(1).c is cls(1).c)
    one = classes["One"]
    see("one", lambda: [one(1) == one(1.0), hash(one(1)) == hash(one(1.0))])
    see("derived", lambda: classes["Frozen"](1) == classes["Derived"](1))
    itself = one([])
    itself.only.append(itself)
    see("itself", lambda: itself)
    return found


def test_they_do_what_the_librarys_do() -> None:
    library, quick = (_seen(_classes(make)) for make in MAKERS.values())
    assert len(library) > 100
    assert quick == library


def test_fields_that_are_the_same_object_are_equal() -> None:
    """On every Python; the library compares them one by one from 3.13 on."""
    one, nan = _classes(records.dataclass)["One"], float("nan")
    assert one(nan) == one(nan)
    assert one(nan) != one(float("nan"))


@records.dataclass(frozen=True)
class Kept:
    a: int
    b: tuple[int, ...] = ()


def test_one_that_comes_from_another_process_is_whole() -> None:
    """Its ``__init__`` is never called."""
    code = (
        "import pickle\n"
        "from test_records import Kept\n"
        f"kept = pickle.loads({pickle.dumps(Kept(1, (2,)))!r})\n"
        "same = hash(kept) == hash((1, (2,))) and kept == pickle.loads(pickle.dumps(kept))\n"
        "raise SystemExit(0 if same and str(kept) == 'Kept(a=1, b=(2,))' else repr(kept))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
