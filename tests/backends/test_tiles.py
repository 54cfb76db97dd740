"""Tiles cover every panel once, in order, within their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.backends.cpu.tiles import SLACK, Panels, ProductPart, cut

matrices = st.builds(ProductPart, st.integers(1, 200), st.integers(1, 5000).map(lambda n: 32 * n))


def covered(tiles: list[tuple[Panels, ...]], part: int) -> list[int]:
    ranges = [p for tile in tiles for p in tile if p.part == part]
    return [panel for p in ranges for panel in range(p.first, p.end)]


@given(st.lists(matrices, min_size=1, max_size=3), st.integers(1, 1 << 22))
def test_in_turn(parts: list[ProductPart], tile_bytes: int) -> None:
    tiles = cut(parts, tile_bytes, together=False)
    for number, part in enumerate(parts):
        assert covered(tiles, number) == list(range(part.panels))
    for tile in tiles:
        nbytes = sum((p.end - p.first) * parts[p.part].panel_bytes for p in tile)
        panels = sum(p.end - p.first for p in tile)
        assert panels == 1 or nbytes + SLACK * len(tile) <= tile_bytes
    order = [(p.part, p.first) for tile in tiles for p in tile]
    assert order == sorted(order)


@given(st.integers(1, 300), st.tuples(st.integers(1, 999), st.integers(1, 999)), st.data())
def test_together(panels: int, widths: tuple[int, int], data: st.DataObject) -> None:
    parts = [ProductPart(panels, 32 * width) for width in widths]
    tile_bytes = data.draw(st.integers(1, 1 << 22))
    tiles = cut(parts, tile_bytes, together=True)
    assert covered(tiles, 0) == covered(tiles, 1) == list(range(panels))
    for first, second in tiles:
        assert (first.first, first.end) == (second.first, second.end)
        assert first.first % 2 == 0
        count = first.end - first.first
        nbytes = count * sum(part.panel_bytes for part in parts)
        assert count <= 2 or nbytes + 2 * SLACK <= tile_bytes


@pytest.mark.parametrize("together", [False, True])
def test_tiles_are_of_about_equal_size(together: bool) -> None:
    parts = [ProductPart(100, 1000), ProductPart(100, 1000)]
    tiles = cut(parts, 45_000, together=together)
    sizes = [sum(p.end - p.first for p in tile) for tile in tiles]
    assert max(sizes) - min(sizes) <= max(sizes) // 3
