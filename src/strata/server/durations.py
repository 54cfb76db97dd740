"""Durations as Ollama's clients and Go's programs write them."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def seconds_of(value: float | str) -> float:
    """A duration: seconds, or text as ``1h30m``. ValueError for any other."""
    if not isinstance(value, str):
        return value
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        try:
            return float(value)
        except ValueError:
            raise ValueError("a duration is expected: seconds, or text as '5m'") from None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
