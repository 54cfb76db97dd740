"""Figures as people write and read them: bytes (``512MB`` is decimal, ``1.5GiB`` binary), times,
speeds."""

from __future__ import annotations

import re
from decimal import Decimal

from strata.errors import UsageError

_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgtp", start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgtp", start=1)},
}
# No machine has more; the bound keeps every later sum of sizes inside a 64-bit integer.
_LARGEST = 2**60
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in ``text``: a number with B, kB ... PB (powers of 1000) or KiB ... PiB (of 1024).

    Units are case-insensitive and a bare number counts bytes. A fraction of a byte is dropped.
    Raises UsageError for anything else.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is not a size; write it like 512MB, 4GB or 1.5GiB")
    size = int(Decimal(match[1]) * unit)
    if size > _LARGEST:
        raise UsageError(f"the size {text!r} is larger than 1 EiB")
    return size


def format_size(size: int) -> str:
    """``size`` bytes with three significant digits and a decimal unit, such as ``98.4 MB``."""
    if size < 1000:
        return f"{size} B"
    units = iter(("kB", "MB", "GB", "TB", "PB", "EB"))
    value, unit = size / 1000, next(units)
    # 999.5 would be printed as 1000: it belongs to the next unit.
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_budget(size: int) -> str:
    """A budget of at least ``size`` bytes that ``parse_size`` reads: whole megabytes, or three
    digits and more of gigabytes, rounded up, such as ``345MB`` or ``107.5GB``."""
    if size < 10 * 10**9:
        return f"{-(-size // 10**6)}MB"
    tenths = -(-size // 10**8)
    return f"{tenths // 10}.{tenths % 10}GB" if tenths % 10 else f"{tenths // 10}GB"


def format_seconds(seconds: float) -> str:
    """A duration with three significant digits at most, such as ``12 ms``, ``3.4 s``, ``11 min``,
    ``25 h`` or ``11 days``."""
    if seconds < 0.9995:
        return f"{_digits(seconds * 1000)} ms"
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 86400)} days"


def format_speed(tokens_s: float) -> str:
    """Tokens a second with three significant digits; of very slow ones the time of a token."""
    if 0 < tokens_s < 0.01:
        return f"a token in {format_seconds(1 / tokens_s)}"
    return f"{_digits(tokens_s)} tok/s"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
