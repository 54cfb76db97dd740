"""Whose memory the guarded processes are."""

from __future__ import annotations

from typing import Protocol


class Account(Protocol):
    """Where the memory of guarded processes is entered while they are there. Any thread may call;
    ``give`` also while an object is collected, which may be in the middle of anything."""

    def take(self, nbytes: int) -> bool:
        """Enter so much more; False, and nothing entered, without room."""

    def give(self, nbytes: int) -> None:
        """Enter that so much is given back."""
