"""Importance of the columns of all matrices, from a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.models import build_model
from strata.program import Model
from strata.quantizer.importance import ImportanceMatrix, Squares
from strata.quantizer.sweeps import Floats, Seen, Sweep, windows_of

Progress = Callable[[str, int, int | None], None]
_Found = dict[tuple[str, int], tuple[NDArray[np.float64], int]]
"""By weight and matrix: sums of squares, and of how many rows."""


def importance_of(
    file: ModelFile,
    tokens: Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    bos: int | None = None,
    threads: int = 1,
    dataset: str = "",
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """Sums of squares of what each matrix is multiplied with, over windows of ``context`` tokens.

    One Segment's weights are in memory at a time, as float32. Sums are in the order of the windows.
    Raises UsageError for a text that has not one window.
    """
    model = build_model(file, context)
    windows = windows_of(tokens, context, chunks, bos)
    if not windows:
        raise UsageError(f"the text has {len(tokens)} tokens, fewer than a window of {context}")
    source = WeightSource(file)
    sweep = Sweep(model, context, threads)
    entries: dict[str, Squares] = {}
    for number, segment in enumerate(model.segments):
        if progress is not None:
            progress("calibrating", number, len(model.segments))
        weights = {w.name: source.floats(w) for w in segment.weights}
        found: list[_Found] = [{} for _ in windows]
        sweep.through(segment, weights, windows, partial(_watcher, found))
        _add(model, number, found, entries)
    if progress is not None:
        progress("calibrating", len(model.segments), len(model.segments))
    return ImportanceMatrix(entries, (dataset,) if dataset else (), len(windows), context)


def _watcher(found: list[_Found], window: int) -> Seen:
    def watch(name: str, matrix: int, value: str, rows: Floats) -> None:
        del value
        squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        sums, count = found[window].get((name, matrix), (np.zeros_like(squares), 0))
        found[window][name, matrix] = sums + squares, count + len(rows)

    return watch


def _add(
    model: Model,
    number: int,
    found: list[_Found],
    entries: dict[str, Squares],
) -> None:
    """Enter what the windows have seen of a Segment's weights under the names of its tensors."""
    for weight in model.segments[number].weights:
        if len(weight.shape) < 2:
            continue
        matrices = weight.shape[0] if len(weight.shape) == 3 else 1
        k = weight.shape[-1]
        sums, counts = np.zeros((matrices, k)), np.zeros(matrices)
        for of_window in found:
            for e in range(matrices):
                if (weight.name, e) in of_window:
                    squares, rows = of_window[weight.name, e]
                    sums[e] += squares
                    counts[e] += rows
        if counts.any() and weight.transform == "none" and weight.source not in entries:
            if (counts == counts[0]).all() and (sums == sums[0]).all():
                sums, counts = sums[:1], counts[:1]
            entries[weight.source] = Squares(sums.astype(np.float32), counts.astype(np.float32))
