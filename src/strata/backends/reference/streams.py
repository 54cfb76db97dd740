"""A residual of several streams, and functions of whole rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strata.backends.reference.run import Run
from strata.backends.reference.state import Floats


def mix(x: Floats, weights: Floats, streams: int) -> Floats:
    """Sums of streams, by weights of each row."""
    parts = x.reshape(len(x), streams, -1)
    by = weights.reshape(len(x), -1, streams)
    out: Floats = np.einsum("tji,tiw->tjw", by, parts)
    return out.reshape(len(x), by.shape[1] * parts.shape[2])


def sinkhorn(x: Floats, streams: int, iterations: int, eps: float) -> Floats:
    """Matrices [from][to] whose rows and columns are divided by their sums in turn, turned."""
    least = np.float32(eps)
    m = x.reshape(len(x), streams, streams)
    m = np.exp(m - m.max(axis=2, keepdims=True))
    m = m / m.sum(axis=2, keepdims=True) + least
    for i in range(iterations):
        if i:
            m = m / (m.sum(axis=2, keepdims=True) + least)
        m = m / (m.sum(axis=1, keepdims=True) + least)
    out: Floats = np.ascontiguousarray(m.transpose(0, 2, 1)).reshape(x.shape)
    return out


def match_rms(x: Floats, like: Floats, least: float) -> Floats:
    """Each stream of x as large as ``like``."""
    parts = x.reshape(len(x), -1, like.shape[1])
    wanted = np.sqrt(np.mean(like * like, axis=1))[:, None, None]
    mean = np.mean(parts * parts, axis=2, keepdims=True)
    out: Floats = parts * (wanted / np.sqrt(np.maximum(mean, np.float32(least))))
    return out.reshape(x.shape)


def cutoff(x: Floats, deviations: float, spare: int) -> Floats:
    """What of each element is above so many deviations of its row."""
    away = x - np.mean(x, axis=1, keepdims=True)
    deviation = np.sqrt(np.sum(away * away, axis=1, keepdims=True) / np.float32(x.shape[1] - spare))
    out: Floats = np.maximum(away - np.float32(deviations) * deviation, np.float32(0))
    return out


STREAMS: Mapping[str, Run] = {
    "mix": lambda a, x, step, state: mix(x[0], x[1], a["streams"]),
    "sinkhorn": lambda a, x, step, state: sinkhorn(x[0], a["streams"], a["iterations"], a["eps"]),
    "match_rms": lambda a, x, step, state: match_rms(x[0], x[1], a["least"]),
    "cutoff": lambda a, x, step, state: cutoff(x[0], a["deviations"], a["spare"]),
}
