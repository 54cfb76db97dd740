"""Pieces cover every panel once, in order, within their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.backends.cpu.tiles import SLACK, Matrix, Panels, cut

matrices = st.builds(Matrix, st.integers(1, 200), st.integers(1, 5000).map(lambda n: 32 * n))


def covered(pieces: list[tuple[Panels, ...]], part: int) -> list[int]:
    ranges = [p for piece in pieces for p in piece if p.part == part]
    return [panel for p in ranges for panel in range(p.first, p.end)]


@given(st.lists(matrices, min_size=1, max_size=3), st.integers(1, 1 << 22))
def test_in_turn(parts: list[Matrix], piece_bytes: int) -> None:
    pieces = cut(parts, piece_bytes, together=False)
    for number, part in enumerate(parts):
        assert covered(pieces, number) == list(range(part.panels))
    for piece in pieces:
        nbytes = sum((p.end - p.first) * parts[p.part].panel_bytes for p in piece)
        panels = sum(p.end - p.first for p in piece)
        assert panels == 1 or nbytes + SLACK * len(piece) <= piece_bytes
    order = [(p.part, p.first) for piece in pieces for p in piece]
    assert order == sorted(order)


@given(st.integers(1, 300), st.tuples(st.integers(1, 999), st.integers(1, 999)), st.data())
def test_together(panels: int, widths: tuple[int, int], data: st.DataObject) -> None:
    parts = [Matrix(panels, 32 * width) for width in widths]
    piece_bytes = data.draw(st.integers(1, 1 << 22))
    pieces = cut(parts, piece_bytes, together=True)
    assert covered(pieces, 0) == covered(pieces, 1) == list(range(panels))
    for first, second in pieces:
        assert (first.first, first.end) == (second.first, second.end)
        assert first.first % 2 == 0
        count = first.end - first.first
        nbytes = count * sum(part.panel_bytes for part in parts)
        assert count <= 2 or nbytes + 2 * SLACK <= piece_bytes


@pytest.mark.parametrize("together", [False, True])
def test_pieces_are_of_about_equal_size(together: bool) -> None:
    parts = [Matrix(100, 1000), Matrix(100, 1000)]
    pieces = cut(parts, 45_000, together=together)
    sizes = [sum(p.end - p.first for p in piece) for piece in pieces]
    assert max(sizes) - min(sizes) <= max(sizes) // 3
