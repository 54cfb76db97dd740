"""Of many cases that are alike, the ordinary run takes some and the long one all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def every(step: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of which each ``step``-th is an ordinary one; the others are marked slow.

    A value may be a ``pytest.param`` already.
    """
    return [value if i % step == 0 else _slow(value) for i, value in enumerate(values)]


def _slow(value: Any) -> Any:
    if isinstance(value, type(pytest.param())):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.slow])
    return pytest.param(value, marks=pytest.mark.slow)
