"""Values and Programs: a list of Ops over named values, checked once when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from strata.errors import StrataError
from strata.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strata.program.ops import Op

Dim = int | Literal["T", "R"]
"""A size known when the model is built, ``"T"`` (tokens of a step) or ``"R"`` (rows of logits)."""

Shape = tuple[Dim, ...]

Role = Literal["weight", "activation", "input"]


class ProgramError(StrataError):
    """A Program that makes no sense: an unknown Op, shapes that do not fit, a value used early."""


@dataclass(frozen=True)
class Value:
    """A named operand: its role and its shape (rows first)."""

    name: str
    role: Role
    shape: Shape

    @property
    def width(self) -> int:
        """Size of the last axis, which is never symbolic."""
        last = self.shape[-1]
        if not isinstance(last, int):
            raise ProgramError(f"value '{self.name}' has no fixed width: {self.shape}")
        return last


@dataclass(frozen=True)
class Program:
    """Ops in order, the values they speak of, and which values go in and come out."""

    ops: tuple[Op, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def readers(self, name: str) -> list[int]:
        """Indices of the Ops that read a value."""
        return [i for i, op in enumerate(self.ops) if name in op.inputs]
