"""What an attack is, and the list that all of them are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strata.formats import errors


@dataclass(frozen=True)
class Attack:
    """`build` writes the case into a directory and returns the path to open."""

    name: str
    error: type[errors.FormatError]
    build: Callable[[Path], Path]


ATTACKS: list[Attack] = []


def case(name: str, error: type[errors.FormatError], build: Callable[[Path], Path]) -> None:
    assert all(attack.name != name for attack in ATTACKS), name
    ATTACKS.append(Attack(name, error, build))
