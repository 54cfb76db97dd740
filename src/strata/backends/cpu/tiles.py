"""Cuts the matrices of a product into tiles: what goes through a stream's ring buffer as one."""

from __future__ import annotations

from collections.abc import Sequence

from strata.records import dataclass

SLACK = 3 * 4096
"""Each range of panels is read into pages of its own: bytes that this adds at most."""


@dataclass(frozen=True)
class Panels:
    """Panels ``first .. end`` of part number ``part`` of a product."""

    part: int
    first: int
    end: int


@dataclass(frozen=True)
class ProductPart:
    """A part of a product: how many panels of 16 rows it has and what each takes, packed."""

    panels: int
    panel_bytes: int


Tile = tuple[Panels, ...]


def smallest_tile(parts: Sequence[ProductPart], *, together: bool) -> int:
    """The fewest bytes of a tile for which ``cut`` gives none that is larger."""
    sizes = [part.panel_bytes for part in parts]
    return (2 * sum(sizes) if together else max(sizes)) + SLACK * len(parts)


def cut(parts: Sequence[ProductPart], tile_bytes: int, *, together: bool) -> list[Tile]:
    """Tiles of at most ``tile_bytes``, in order, of about equal size, that cover all panels.

    With ``together`` (a gate and what it gates, which have the same panels) every tile has the
    same columns of all parts, beginning at an even panel. A tile is larger than ``tile_bytes``
    only where a single panel, or with ``together`` two panels of each part, does not fit.
    """
    room = tile_bytes - SLACK * len(parts)
    return _cut_together(parts, room) if together else _cut_in_turn(parts, room)


def _cut_together(parts: Sequence[ProductPart], room: int) -> list[Tile]:
    panels = parts[0].panels
    pair = 2 * sum(part.panel_bytes for part in parts)
    pairs = -(-panels // 2)
    count = -(-pairs // max(1, room // pair))
    ends = [min(2 * (pairs * (i + 1) // count), panels) for i in range(count)]
    return [
        tuple(Panels(part, first, end) for part in range(len(parts)))
        for first, end in zip([0, *ends], ends, strict=False)
    ]


def _cut_in_turn(parts: Sequence[ProductPart], room: int) -> list[Tile]:
    total = sum(part.panels * part.panel_bytes for part in parts)
    largest = max(part.panel_bytes for part in parts)
    count = -(-total // max(1, room))
    # A tile ends before the panel that does not fit; the last one is to be no crumb.
    room = min(room, -(-total // count) + largest)
    tiles: list[Tile] = []
    tile: list[Panels] = []
    left = room
    for number, part in enumerate(parts):
        first = 0
        while first < part.panels:
            fit = min(part.panels - first, left // part.panel_bytes)
            if fit < 1 and tile:
                tiles.append(tuple(tile))
                tile, left = [], room
                continue
            fit = max(fit, 1)
            tile.append(Panels(number, first, first + fit))
            left -= fit * part.panel_bytes
            first += fit
    return [*tiles, tuple(tile)]
