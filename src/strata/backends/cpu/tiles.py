"""Cuts the matrices of a product into pieces: what goes through the ring of a stream as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SLACK = 3 * 4096
"""Each range of panels is read into pages of its own in the ring: bytes that this adds at most."""


@dataclass(frozen=True)
class Panels:
    """Panels ``first .. end`` of part number ``part`` of a product."""

    part: int
    first: int
    end: int


@dataclass(frozen=True)
class Matrix:
    """A part of a product: how many panels of 16 rows it has and what each takes, packed."""

    panels: int
    panel_bytes: int


Piece = tuple[Panels, ...]


def smallest_piece(parts: Sequence[Matrix], *, together: bool) -> int:
    """The fewest bytes of a piece for which ``cut`` gives none that is larger."""
    sizes = [part.panel_bytes for part in parts]
    return (2 * sum(sizes) if together else max(sizes)) + SLACK * len(parts)


def cut(parts: Sequence[Matrix], piece_bytes: int, *, together: bool) -> list[Piece]:
    """Pieces of at most ``piece_bytes``, in order, of about equal size, that cover all panels.

    With ``together`` (a gate and what it gates, which have the same panels) every piece has the
    same columns of all parts, beginning at an even panel. A piece is larger than ``piece_bytes``
    only where a single panel, or with ``together`` two panels of each part, does not fit.
    """
    room = piece_bytes - SLACK * len(parts)
    return _cut_together(parts, room) if together else _cut_in_turn(parts, room)


def _cut_together(parts: Sequence[Matrix], room: int) -> list[Piece]:
    panels = parts[0].panels
    pair = 2 * sum(part.panel_bytes for part in parts)
    pairs = -(-panels // 2)
    count = -(-pairs // max(1, room // pair))
    ends = [min(2 * (pairs * (i + 1) // count), panels) for i in range(count)]
    return [
        tuple(Panels(part, first, end) for part in range(len(parts)))
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def _cut_in_turn(parts: Sequence[Matrix], room: int) -> list[Piece]:
    total = sum(part.panels * part.panel_bytes for part in parts)
    largest = max(part.panel_bytes for part in parts)
    count = -(-total // max(1, room))
    # A piece ends before the panel that does not fit; the last one is to be no crumb.
    room = min(room, -(-total // count) + largest)
    pieces: list[Piece] = []
    piece: list[Panels] = []
    left = room
    for number, part in enumerate(parts):
        first = 0
        while first < part.panels:
            fit = min(part.panels - first, left // part.panel_bytes)
            if fit < 1 and piece:
                pieces.append(tuple(piece))
                piece, left = [], room
                continue
            fit = max(fit, 1)
            piece.append(Panels(number, first, first + fit))
            left -= fit * part.panel_bytes
            first += fit
    return [*pieces, tuple(piece)]
