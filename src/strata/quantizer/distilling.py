"""A layer's rounded matrices brought nearer to what the floats give, by signs of gradients.

What a layer gives is compared with what it gives in the model of floats; rounded weights move by
small steps against the sign of the gradient, at most half a step of their grid away, and are
rounded anew. Part of the text's windows say where to, the others which rounding is kept, so that
what is only learnt by heart is not. Source: AutoRound (Cheng et al., arXiv:2309.05516), with any
block type's own encoder in place of its scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.program import Segment
from strata.quant import BlockType, by_name
from strata.quantizer.encoder import Encoder
from strata.quantizer.gradients import gradients
from strata.quantizer.sweeps import Floats, Sweep, Window
from strata.records import dataclass

Raw = NDArray[np.uint8]
# Windows that are learnt from, at most; as many others judge.
_LEARNT, _JUDGING = 4, 4
_WITHIN = np.float32(0.45)


@dataclass
class Rounded:
    """A matrix of a layer: its floats, what it was rounded to, and how columns matter."""

    weight: str
    type: BlockType
    plain: Floats
    decoded: Floats
    raw: Raw
    importance: Floats


def distil(
    segment: Segment,
    floats: dict[str, Floats],
    matrices: Sequence[Rounded],
    now: Sequence[Window],
    wanted: Sequence[Mapping[str, Floats]],
    sweep: Sweep,
    encoder: Encoder,
    steps: int,
) -> tuple[float, float]:
    """Better rounding of ``matrices`` of a Segment, in place, in ``floats``, too: ``now`` are the
    windows as rounded layers give them, ``wanted`` what the layer gives in the model of floats.
    Returns the mean squared error on the judging windows before and after, which is no larger.
    """
    learnt = list(range(0, len(now), 2))[:_LEARNT]
    judging = list(range(1, len(now), 2))[:_JUDGING] or learnt
    names = tuple(segment.outputs)

    def error() -> float:
        given = sweep.through(segment, floats, [now[i] for i in judging], keep=False, whole=True)
        return _error([wanted[i] for i in judging], given, names)

    begun = best = error()
    grid = [_grid(m) for m in matrices]
    starts = [_start(m, by) for m, by in zip(matrices, grid, strict=True)]
    moved = [np.zeros_like(m.decoded) for m in matrices]
    kept = [(m.decoded, m.raw) for m in matrices]
    for step in range(steps):
        sums = [np.zeros_like(m.decoded) for m in matrices]
        for i in learnt:
            values = sweep.values(segment, floats, now[i])
            inner = dict(zip(segment.outputs, segment.program.outputs, strict=True))
            outer = {inner[n]: values[inner[n]] - wanted[i][n] for n in names}
            at = np.arange(len(now[i].tokens), dtype=np.int32)
            found = gradients(segment, values, at, outer)
            for part, m in zip(sums, matrices, strict=True):
                part += found[m.weight]
        rate = (1 - step / steps) / steps
        for m, part, by, away, start in zip(matrices, sums, grid, moved, starts, strict=True):
            away -= rate * by * np.sign(part)
            np.clip(away, -by / 2, by / 2, out=away)
            seen = np.empty_like(m.decoded)
            raw = encoder.encode(
                m.type,
                by_name("F32"),
                (start + away).reshape(-1).view(np.uint8),
                (len(seen), seen.shape[1]),
                m.importance,
                decoded=seen,
            )
            m.decoded, m.raw = seen, raw
            floats[m.weight] = seen
        then = error()
        if then < best:
            best, kept = then, [(m.decoded, m.raw) for m in matrices]
    for m, (decoded, raw) in zip(matrices, kept, strict=True):
        m.decoded, m.raw = decoded, raw
        floats[m.weight] = decoded
    return begun, best


def _grid(m: Rounded) -> Floats:
    """About the distance of neighbours on each row's grid, [n, 1]: even errors between two have a
    twelfth of its square."""
    found: Floats = np.sqrt(12 * ((m.plain - m.decoded) ** 2).mean(axis=1, keepdims=True))
    return found


def _start(m: Rounded, by: Floats) -> Floats:
    """Where weights begin: at their floats, but where these were rounded to something else than
    their nearest (GPTQ), as far towards them as stays with that."""
    found: Floats = m.decoded + np.clip(m.plain - m.decoded, -_WITHIN * by, _WITHIN * by)
    return found


def _error(
    wanted: Sequence[Mapping[str, Floats]],
    given: Sequence[Mapping[str, Floats]],
    names: Sequence[str],
) -> float:
    squares = [
        float(((a[n].astype(np.float64) - b[n]) ** 2).mean())
        for a, b in zip(wanted, given, strict=True)
        for n in names
    ]
    return float(np.mean(squares))
