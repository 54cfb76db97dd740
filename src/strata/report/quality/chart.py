"""Loss against bytes as a picture: SVG for documents, characters for terminals."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from strata.records import dataclass
from strata.report.quality.figures import pareto


@dataclass(frozen=True)
class Point:
    """A model: its file's bytes, its loss (greater than 0) and the interval around that."""

    name: str
    nbytes: int
    loss: float
    low: float
    high: float


_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 40, 56
_COLUMNS, _LINES = 64, 16
_LEAST = 1e-9


class _Scale:
    """Bytes linear from left to right, loss by its logarithm from below upwards; 0 to 1 each."""

    def __init__(self, points: Sequence[Point]) -> None:
        sizes = [p.nbytes for p in points]
        low, high = min(sizes), max(sizes)
        margin = 0.06 * (high - low) or 0.5 * high or 1
        self.x0, self.x1 = low - margin, high + margin
        logs = [log10(max(v, _LEAST)) for p in points for v in (p.loss, p.low or p.loss, p.high)]
        self.y0, self.y1 = min(logs) - 0.1, max(logs) + 0.1

    def x(self, nbytes: float) -> float:
        return (nbytes - self.x0) / (self.x1 - self.x0)

    def y(self, loss: float) -> float:
        return (log10(max(loss, _LEAST)) - self.y0) / (self.y1 - self.y0)

    def losses(self) -> list[float]:
        """Round losses, about five, to be marked."""
        steps = (1, 2, 5) if self.y1 - self.y0 < 2.5 else (1,)
        decades = range(floor(self.y0), ceil(self.y1) + 1)
        found = [s * 10.0**d for d in decades for s in steps]
        return [v for v in found if self.y0 <= log10(v) <= self.y1]

    def sizes(self) -> list[float]:
        """Round sizes, about six."""
        step = 10.0 ** floor(log10((self.x1 - self.x0) / 3))
        while (self.x1 - self.x0) / step > 8:
            step *= 2 if str(step)[0] == "1" else 2.5
        first = ceil(self.x0 / step)
        return [i * step for i in range(first, floor(self.x1 / step) + 1)]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that none beats in both, from few bytes to many."""
    best = pareto([(p.nbytes, p.loss) for p in points])
    return sorted((p for p, b in zip(points, best, strict=True) if b), key=lambda p: p.nbytes)


def svg(points: Sequence[Point], loss: str, title: str) -> str:
    """An SVG document: points with their intervals and names, the front as a line."""
    scale = _Scale(points)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(nbytes: float) -> str:
        return f"{_LEFT + scale.x(nbytes) * wide:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (1 - scale.y(value)) * high:.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for size in scale.sizes():
        out.append(
            f'<path d="M{x(size)} {_TOP}V{_TOP + high}" stroke="#ddd"/>'
            f'<text x="{x(size)}" y="{_TOP + high + 18}" text-anchor="middle">{size / 1e6:g}</text>'
        )
    for value in scale.losses():
        out.append(
            f'<path d="M{_LEFT} {y(value)}H{_LEFT + wide}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{y(value)}" text-anchor="end" '
            f'dominant-baseline="middle">{value:g}</text>'
        )
    out.append(
        f'<text x="{_LEFT + wide / 2:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">megabytes of '
        f'the file</text><text transform="translate(18 {_TOP + high / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(loss)}</text>'
    )
    line = front(points)
    path = "L".join(f"{x(p.nbytes)} {y(p.loss)}" for p in line)
    out.append(f'<path d="M{path}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>')
    for p in points:
        colour = "#1f77b4" if p in line else "#999"
        at = f'cx="{x(p.nbytes)}" cy="{y(p.loss)}"'
        if p.low < p.high:
            span = f"M{x(p.nbytes)} {y(p.low)}V{y(p.high)}"
            out.append(f'<path d="{span}" stroke="{colour}"/>')
        out.append(
            f'<circle {at} r="4" fill="{colour}"/>'
            f'<text x="{float(x(p.nbytes)) + 7:.1f}" y="{float(y(p.loss)) - 6:.1f}">'
            f"{escape(p.name)}</text>"
        )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def drawing(points: Sequence[Point], loss: str) -> str:
    """The same in plain characters: a letter a model, a capital one where none is better in both,
    with what they stand for below."""
    scale = _Scale(points)
    grid = [[" "] * _COLUMNS for _ in range(_LINES)]
    best = front(points)
    letters = []
    for number, p in enumerate(points):
        letter = chr(ord("a") + number) if number < 26 else "*"
        letter = letter.upper() if p in best else letter
        letters.append(letter)
        line = _LINES - 1 - round(scale.y(p.loss) * (_LINES - 1))
        grid[line][round(scale.x(p.nbytes) * (_COLUMNS - 1))] = letter
    marks = {
        _LINES - 1 - round(scale.y(v) * (_LINES - 1)): f"{v:g}" for v in reversed(scale.losses())
    }
    lines = [loss]
    lines += [f"{marks.get(i, ''):>8} |{''.join(row)}".rstrip() for i, row in enumerate(grid)]
    lines.append(f"{'':8} +{'-' * _COLUMNS}")
    axis = [" "] * (_COLUMNS + 8)
    for size in scale.sizes():
        text = f"{size / 1e6:g}"
        at = max(0, round(scale.x(size) * (_COLUMNS - 1)) - len(text) // 2)
        axis[at : at + len(text)] = text
    lines.append(f"{'':10}{''.join(axis).rstrip()} MB")
    lines += [f"{letter} {p.name}" for letter, p in zip(letters, points, strict=True)]
    return "\n".join(lines)
