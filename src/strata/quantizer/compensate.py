"""GPTQ over a whole model: each matrix is rounded with the second moments of what it multiplies, in
a model of which everything before it is rounded already.

Source: Frantar and others, arXiv 2210.17323. Scales are fitted where a block begins, weighed by
what the columns behind it cannot make up for; blocks come by falling importance (act-order). What a
matrix is rounded to are not its own values but those that give, of inputs as rounded layers make
them, most nearly what the floats gave of theirs (the asymmetric calibration of arXiv 2504.02692, by
ridge regression), if the text has many rows for each column: of a few it learns what is true of
them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import WeightSource
from strata.program import Model, Segment, Weight
from strata.quant import BlockType, by_name, dequantize
from strata.quantizer.distilling import Rounded, distil
from strata.quantizer.encoder import Encoder
from strata.quantizer.gradients import NotDifferentiable, check_differentiable
from strata.quantizer.sources import Raw, Source, SourceTensor
from strata.quantizer.sweeps import Floats, Seen, Sweep, Window, matrices

Progress = Callable[[str, int, int | None], None]
_DAMPING = 0.01
# Of the mean moment: how strongly weights are held where a text says little of how inputs drift.
_HELD = 0.1
_FLOATS = ("F32", "F16", "BF16")
# How many rows there are for each column, at least, where inputs' drift is made up for. On a small
# model 10.7 halved the KL; on SmolLM2 2.7 to 7.1 made seven times as much of it.
_ROWS_FOR_DRIFT = 10
# An expert that fewer rows came to than this share of its width is weighed by column only.
_ENOUGH = 0.25


class Moments:
    """x^T y over the rows of all windows, in the order of the windows."""

    def __init__(self, width: int) -> None:
        self._sum = np.zeros((width, width))
        self._next = 0
        self._waiting: dict[int, Floats] = {}
        self._counts: dict[int, int] = {}
        self._lock = Lock()

    @property
    def rows(self) -> int:
        """Rows so far."""
        return sum(self._counts.values())

    def add(self, window: int, rows: Floats, others: Floats) -> None:
        """From any thread, each window once."""
        part = rows.T @ others
        with self._lock:
            self._counts[window] = len(rows)
            self._waiting[window] = part
            while self._next in self._waiting:
                self._sum += self._waiting.pop(self._next)
                self._next += 1

    def total(self) -> NDArray[np.float64]:
        """The sum, when all windows are done."""
        for window in sorted(self._waiting):
            self._sum += self._waiting.pop(window)
        return self._sum


def factor_of(
    moments: NDArray[np.float64], elements: int
) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """What the encoder takes: the factor in the order of the blocks, the importance of columns in
    the tensor's own order, and the order, blocks of ``elements`` columns by falling importance."""
    k = len(moments)
    diagonal = np.diag(moments).copy()
    floor = max(float(diagonal.mean()), 1e-30)
    order = np.argsort(-diagonal.reshape(-1, elements).sum(axis=1), kind="stable")
    columns = (order[:, None] * elements + np.arange(elements)).reshape(-1)
    damped = moments[np.ix_(columns, columns)] + np.eye(k) * (_DAMPING * floor)
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    factor = np.ascontiguousarray(lower.T, np.float32)
    importance = np.empty(k, np.float32)
    importance[columns] = 1 / np.diag(lower) ** 2
    return factor, importance, order.astype(np.int32)


def drift_of(moments: NDArray[np.float64], crossed: NDArray[np.float64]) -> NDArray[np.float64]:
    """What weights have to be multiplied with and given in addition, so that they make up for how
    inputs drifted: (x - y)^T y (y^T y + held)^-1, with y the inputs as they are now."""
    k = len(moments)
    held = _HELD * max(float(np.diag(moments).mean()), 1e-30)
    made: NDArray[np.float64] = np.linalg.solve(moments + held * np.eye(k), crossed.T).T
    return made


class Compensation:
    """Gives the bytes of tensors in the order of ``order``, a Segment's worth at a time."""

    def __init__(
        self,
        source: Source,
        model: Model,
        weights: WeightSource,
        windows: list[Window],
        sweep: Sweep,
        types: Mapping[str, BlockType],
        encoder: Encoder,
        identity: str,
        progress: Progress | None = None,
        *,
        distilled: int = 0,
    ) -> None:
        self.identity = f"gptq 3 {distilled} {identity}"
        self._source = source
        self._model = model
        self._weights = weights
        self._windows = windows
        # The same in the model of floats.
        self._plain = [Window(w.tokens, w.values) for w in windows]
        self._sweep = sweep
        self._types = types
        self._encoder = encoder
        self._progress = progress
        self._distilled = distilled
        self._next = 0
        self._made: dict[str, list[Raw]] = {}
        self._rounded: dict[str, Rounded] = {}
        # A tensor that two Segments read (a tied head) belongs to the one that multiplies with it.
        self._segment_of: dict[str, int] = {}
        for number, segment in enumerate(model.segments):
            multiplied = set(matrices(segment))
            for weight in segment.weights:
                if weight.name in multiplied and weight.transform == "none":
                    self._segment_of.setdefault(weight.source, number)

    def handles(self, name: str) -> bool:
        """Whether a tensor is rounded here; others are rounded for themselves."""
        type, tensor = self._types.get(name), self._source.tensors[name]
        rounded = type is not None and type.name not in _FLOATS and type is not tensor.type
        return rounded and name in self._segment_of and tensor.shape[-1] % 16 == 0

    def order(self) -> list[str]:
        """Tensors so that as little as can be has to wait for being written."""
        names = list(self._source.tensors)
        return sorted(names, key=lambda n: self._segment_of[n] if self.handles(n) else -1)

    def pieces(self, name: str) -> Iterable[Raw]:
        """The bytes of a tensor."""
        while name not in self._made:
            self._segment(self._next)
            self._next += 1
        return self._made.pop(name)

    def _segment(self, number: int) -> None:
        segment = self._model.segments[number]
        if self._progress is not None:
            self._progress("error propagation", number, len(self._model.segments))
        floats = {w.name: self._weights.floats(w) for w in segment.weights}
        mine = [n for n, s in self._segment_of.items() if s == number and self.handles(n)]
        if mine:
            seen = self._seen(segment, floats)
            self._rounded = {}
            for name in mine:
                self._round(name, segment, floats, seen)
            self._distil(segment, floats)
        else:
            self._sweep.through(segment, floats, self._plain)
        if number + 1 < len(self._model.segments):
            self._sweep.through(segment, floats, self._windows)

    def _distil(self, segment: Segment, floats: dict[str, Floats]) -> None:
        """Rounding that loses less of what the Segment gives, where gradients go through it."""
        if not self._distilled or not self._rounded:
            return
        try:
            check_differentiable(segment)
        except NotDifferentiable:
            return
        wanted = [window.values for window in self._plain]
        matrices = list(self._rounded.values())
        distil(
            segment,
            floats,
            matrices,
            self._windows,
            wanted,
            self._sweep,
            self._encoder,
            self._distilled,
        )
        for name, matrix in self._rounded.items():
            self._made[name] = [matrix.raw]

    def _seen(self, segment: Segment, floats: Mapping[str, Floats]) -> _Inputs:
        """Some windows at a time, in the model of floats and in the other."""
        seen = _Inputs()
        whole = {w.name for w in segment.weights if len(w.shape) == 2}
        some = self._sweep.threads
        for first in range(0, len(self._windows), some):
            plain, now = (w[first : first + some] for w in (self._plain, self._windows))
            kept: list[dict[str, Floats]] = [{} for _ in now]
            self._sweep.through(segment, floats, plain, partial(_keeper, kept, whole))
            see = partial(seen.watch, kept, first)
            self._sweep.through(segment, floats, now, see, keep=False)
        return seen

    def _round(
        self,
        name: str,
        segment: Segment,
        floats: dict[str, Floats],
        seen: _Inputs,
    ) -> None:
        tensor, type = self._source.tensors[name], self._types[name]
        readers = [w for w in segment.weights if w.source == name]
        first = next(w for w in readers if any(key[0] == w.name for key in seen.value_of))
        rows, k = tensor.matrix
        count = tensor.shape[0] if len(tensor.shape) == 3 else 1
        each = rows // count
        decoded = np.empty((count, each, k), np.float32)
        made = []
        for e in range(count):
            raw = tensor.rows(e * each, (e + 1) * each)
            key = seen.value_of.get((first.name, e if count > 1 else 0))
            found = None if key is None else seen.moments[key, e if count > 1 else 0]
            if found is None or found.rows < _ENOUGH * k:
                made.append(
                    self._encoder.encode(
                        type, tensor.type, raw, (each, k), None, decoded=decoded[e]
                    )
                )
                continue
            total = found.total()
            factor, importance, order = factor_of(total, type.elements)
            source = tensor.type
            many = found.rows >= _ROWS_FOR_DRIFT * k
            if many and key is not None and (crossed := seen.crossed.get(key)) is not None:
                x = dequantize(source, raw, (each, k))
                x = x + (x @ drift_of(total, crossed.total())).astype(np.float32)
                raw, source = x.reshape(-1).view(np.uint8), by_name("F32")
            made.append(
                self._encoder.encode(
                    type, source, raw, (each, k), importance, factor, order, decoded[e]
                )
            )
            alone = len(readers) == 1 and count == 1 and first.rows is None
            if self._distilled and alone:
                plain = dequantize(tensor.type, tensor.rows(0, rows), (rows, k))
                self._rounded[name] = Rounded(
                    first.name, type, plain, decoded[0], made[0], importance
                )
        self._made[name] = made
        for weight in readers:
            floats[weight.name] = _part(decoded, weight, tensor)


class _Inputs:
    """What the matrices of a Segment are multiplied with: moments of the rows as they are, and of
    how they drifted (of experts not: other rows come to them), each input once."""

    def __init__(self) -> None:
        self.moments: dict[tuple[str, int], Moments] = {}
        self.crossed: dict[str, Moments] = {}
        self.value_of: dict[tuple[str, int], str] = {}

    def watch(self, kept: list[dict[str, Floats]], first: int, number: int) -> Seen:
        """What watches one of the windows from ``first`` on, of which the inputs were ``kept`` in
        the model of floats."""
        plain, window = kept[number], first + number
        seen: set[tuple[str, int]] = set()

        def watch(name: str, matrix: int, value: str, rows: Floats) -> None:
            self.value_of[name, matrix] = value
            if (value, matrix) in seen:
                return
            seen.add((value, matrix))
            moments = self.moments.setdefault((value, matrix), Moments(rows.shape[1]))
            moments.add(window, rows, rows)
            if value in plain and plain[value].shape == rows.shape:
                crossed = self.crossed.setdefault(value, Moments(rows.shape[1]))
                crossed.add(window, plain[value] - rows, rows)

        return watch


def _keeper(kept: list[dict[str, Floats]], whole: set[str], window: int) -> Seen:
    """What keeps the inputs of matrices that are alone of their name."""

    def watch(name: str, matrix: int, value: str, rows: Floats) -> None:
        if name in whole:
            kept[window][value] = rows

    return watch


def _part(decoded: Floats, weight: Weight, tensor: SourceTensor) -> Floats:
    """What a weight takes of its tensor."""
    if len(tensor.shape) == 3:
        return decoded[:, slice(*weight.each)] if weight.each else decoded
    whole = decoded.reshape(tensor.matrix)
    return whole[slice(*weight.rows)] if weight.rows else whole
