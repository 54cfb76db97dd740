"""What runs an Op: the type of the functions that the modules beside this one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from strata.backends.base import (
    Step,
)
from strata.backends.reference.state import Floats, ReferenceState

Attrs = Mapping[str, Any]
Run = Callable[[Attrs, list[Floats], Step, ReferenceState], Floats]
"""(attributes, operands, step, state) -> output; the rows of all sequences are together."""


def operand(operands: list[Floats], number: int) -> Floats | None:
    """An optional operand, None where it is missing."""
    return operands[number] if len(operands) > number else None
