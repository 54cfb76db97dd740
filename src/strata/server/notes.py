"""What a caller should know of an answer that none of its fields says: in a header, and the log."""

from __future__ import annotations

import logging
from contextvars import ContextVar

from strata.server.seldom import Seldom

HEADER = "x-strata-warning"
_MOST = 1000
"""Characters of the header."""

_seldom = Seldom(logging.getLogger("strata.server"))
NOTES: ContextVar[list[str]] = ContextVar("notes")
"""Of the request that is served."""


def note(text: str) -> None:
    """Tell the caller ``text``, and the log unless it was told a moment ago."""
    NOTES.get().append(text)
    _seldom.warning(text)


def header_of(notes: list[str]) -> bytes:
    """The header's value."""
    return "; ".join(notes)[:_MOST].encode("ascii", "backslashreplace").replace(b"\n", b" ")
