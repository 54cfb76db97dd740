"""Durations as Ollama's clients and Go's programs write them."""

from __future__ import annotations

import math
import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")

_LONGEST = 64
"""Characters: looking for numbers in a long row of digits takes time by its square."""


def seconds_of(value: float | str) -> float:
    """A duration: seconds, or text as ``1h30m``. ValueError for any other."""
    try:
        seconds = _parsed(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError("a duration is expected: seconds, or text as '5m'")
    return seconds


def _parsed(text: str) -> float:
    if len(text) > _LONGEST:
        raise ValueError
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return float(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
