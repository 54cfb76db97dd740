"""Changes of a model's weights that cancel each other, so that its answers stay and its rounding
gets better: columns of matrices are multiplied, and what is multiplied with them divided, where
both are weights.

Sources: AWQ (Lin and others, arXiv 2306.00978), SmoothQuant (Xiao and others, arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import WeightSource
from strata.formats import ModelFile
from strata.program import Model, Segment, Weight
from strata.program.ops import Op
from strata.quant import BlockType, by_name, dequantize
from strata.quantizer.encoder import Encoder
from strata.quantizer.importance import ImportanceMatrix, Squares
from strata.quantizer.presented import Presented, Raw, changed_infos, in_pieces, piece_nbytes
from strata.quantizer.sources import Source
from strata.quantizer.sweeps import Floats, Seen, Sweep, Window
from strata.records import dataclass

Progress = Callable[[str, int, int | None], None]
_PLAIN = by_name("F32")
_POWERS = np.arange(0, 1, 0.1)
"""Strengths that AWQ tries, of which 0 leaves everything as it is."""
_ROWS = 192
"""Rows of a matrix, and of what it is multiplied with, by which scales are judged."""
_LEAST = 1e-4


@dataclass(frozen=True)
class Divided:
    """Entries of a vector, or rows of a matrix, from ``first`` on."""

    tensor: str
    first: int


@dataclass(frozen=True)
class Fold:
    """A value of a Segment whose columns may be divided. ``order`` [columns] says by which of the
    ``width`` scales each is: heads that share keys and values share scales."""

    segment: int
    value: str
    width: int
    divided: tuple[Divided, ...]
    multiplied: tuple[str, ...]
    order: NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """What a tensor's rows and columns are multiplied with."""

    rows: Floats | None = None
    columns: Floats | None = None


def find_folds(model: Model) -> list[Fold]:
    """Where scales can be moved from one weight to another: behind norms, from the ups of gated
    products to their downs, and from values to the products of heads."""
    readers: dict[str, list[tuple[int, Weight]]] = {}
    for number, segment in enumerate(model.segments):
        for weight in segment.weights:
            readers.setdefault(weight.source, []).append((number, weight))
    folds = []
    for number, segment in enumerate(model.segments):
        weights = {w.name: w for w in segment.weights}
        for op in segment.program.ops:
            part = _divided(segment, op, weights, readers)
            products = _products(segment, number, op.output, weights, readers)
            if part is not None and products is not None:
                divided, width, order = part
                folds.append(Fold(number, op.output, width, divided, products, order))
    return folds


def _divided(
    segment: Segment,
    op: Op,
    weights: Mapping[str, Weight],
    readers: Mapping[str, list[tuple[int, Weight]]],
) -> tuple[tuple[Divided, ...], int, NDArray[np.int64]] | None:
    """What is divided where this Op's output is to be, by how many scales, and by which each."""
    names: Sequence[str]
    if op.kind in ("rms_norm", "layer_norm") and len(op.inputs) > 1:
        names, count = op.inputs[1:], segment.program.values[op.output].width
        order = np.arange(count)
    elif op.kind == "glu" or (op.kind == "attention" and len(op.inputs) > 2):
        side = op.inputs[1 if op.kind == "glu" else 2]
        makers = [o for o in segment.program.ops if o.output == side]
        if len(segment.program.readers(side)) != 1 or not makers or makers[0].kind != "matmul":
            return None
        names = makers[0].inputs[1:]
        count = segment.program.values[side].width
        order = np.arange(count)
        if op.kind == "attention":
            heads, kept, dim = (op.attrs[n] for n in ("heads", "kv_heads", "v_dim"))
            if count != kept * dim:
                return None
            order = order.reshape(kept, 1, dim).repeat(heads // kept, axis=1).reshape(-1)
    else:
        return None
    found = []
    for name in names:
        weight = weights.get(name)
        if weight is None or weight.transform != "none" or weight.each or weight.shape[0] != count:
            return None
        if len(readers[weight.source]) > 1 and weight.rows is None:
            return None
        found.append(Divided(weight.source, weight.rows[0] if weight.rows else 0))
    return tuple(found), count, order


def _products(
    segment: Segment,
    number: int,
    value: str,
    weights: Mapping[str, Weight],
    readers: Mapping[str, list[tuple[int, Weight]]],
) -> tuple[str, ...] | None:
    """The tensors of all that reads a value, if only products with whole matrices do and nothing
    else reads those."""
    ops = [segment.program.ops[i] for i in segment.program.readers(value)]
    if not ops or value in segment.program.outputs:
        return None
    names = set()
    for op in ops:
        weight = weights.get(op.inputs[1]) if op.kind == "matmul" else None
        if weight is None or op.inputs[0] != value or op.inputs[1:].count(value):
            return None
        if weight.transform != "none" or len(weight.shape) != 2:
            return None
        names.add(weight.name)
    sources = {weights[name].source for name in names}
    for source in sources:
        if any(at != number or reader.name not in names for at, reader in readers[source]):
            return None
    return tuple(sorted(sources))


class Folded(Presented):
    """A model with changed weights, as 32-bit floats."""

    def __init__(self, file: ModelFile, source: Source, changes: Mapping[str, Change]) -> None:
        infos = changed_infos(file, source.tensors.values(), changes)
        super().__init__(file, source.keys, source.values, infos)
        self._source = source
        self._changes = changes
        digest = sha256(source.identity.encode())
        for name in sorted(changes):
            for part in (changes[name].rows, changes[name].columns):
                digest.update(name.encode() + (b"" if part is None else part.tobytes()))
        self.changes = digest.hexdigest()

    def matrix_rows(self, name: str, first: int, last: int) -> Raw:
        """See Presented."""
        tensor = self._source.tensors[name]
        change = self._changes.get(name)
        if change is None:
            return tensor.rows(first, last)
        k = tensor.matrix[1]

        def make(begin: int, end: int) -> Floats:
            x = dequantize(tensor.type, tensor.rows(begin, end), (end - begin, k))
            x = x if change.rows is None else x * change.rows[begin:end, None]
            return x if change.columns is None else x * change.columns

        return in_pieces(first, last, k, make).reshape(-1).view(np.uint8)

    def held(self, name: str) -> int:
        """See Presented."""
        tensor = self._source.tensors[name]
        return tensor.held + (piece_nbytes(tensor.matrix[1]) if name in self._changes else 0)


def changes_of(
    source: Source, folds: Mapping[int, Floats], found: Sequence[Fold]
) -> dict[str, Change]:
    """What becomes of each tensor, by the scales of each fold's number."""
    rows: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}
    for number, scales in folds.items():
        fold = found[number]
        for part in fold.divided:
            tensor = source.tensors[part.tensor]
            # A vector is one row of entries.
            table, size = (
                (columns, tensor.matrix[1])
                if len(tensor.shape) == 1
                else (
                    rows,
                    tensor.matrix[0],
                )
            )
            mine = table.setdefault(part.tensor, np.ones(size, np.float32))
            mine[part.first : part.first + fold.width] /= scales
        for name in fold.multiplied:
            size = source.tensors[name].matrix[1]
            columns.setdefault(name, np.ones(size, np.float32))[:] *= scales[fold.order]
    names = sorted({*rows, *columns})
    return {name: Change(rows.get(name), columns.get(name)) for name in names}


def divide_importance(
    matrix: ImportanceMatrix, folds: Mapping[int, Floats], found: Sequence[Fold]
) -> ImportanceMatrix:
    """Of what matrices are multiplied with once scales are moved."""
    entries = dict(matrix.entries)
    for number, scales in folds.items():
        for name in found[number].multiplied:
            if name in entries:
                old = entries[name]
                sums = old.sums / scales[found[number].order] ** 2
                entries[name] = Squares(sums.astype(np.float32), old.counts)
    return ImportanceMatrix(entries, matrix.datasets, matrix.chunks, matrix.chunk_size)


class _Sample:
    """Some rows of what a value's matrices are multiplied with, and its largest columns."""

    def __init__(self, windows: int) -> None:
        self._each = -(-_ROWS // windows)
        self._rows: dict[int, Floats] = {}
        self._most: dict[int, Floats] = {}

    def add(self, window: int, rows: Floats) -> None:
        """From any thread, each window once."""
        step = max(1, len(rows) // self._each)
        self._rows[window] = rows[step - 1 :: step][: self._each].copy()
        self._most[window] = np.abs(rows).max(axis=0)

    @property
    def rows(self) -> Floats:
        """Those of all windows, one behind the other."""
        return np.concatenate([self._rows[i] for i in sorted(self._rows)])

    @property
    def most(self) -> Floats:
        """The largest size of each column."""
        most: Floats = np.max([self._most[i] for i in sorted(self._most)], axis=0)
        return most


def choose_scales(
    model: Model,
    weights: WeightSource,
    windows: Sequence[Window],
    sweep: Sweep,
    found: Sequence[Fold],
    choose: Callable[[Fold, _Sample, Mapping[str, Floats]], Floats | None],
    progress: Progress | None = None,
) -> dict[int, Floats]:
    """Scales by the number of the fold, each chosen in the model as it was, by what a text makes of
    its value; None from ``choose`` leaves it."""
    scales: dict[int, Floats] = {}
    for number, segment in enumerate(model.segments):
        if progress is not None:
            progress("scales", number, len(model.segments))
        mine = {i: f for i, f in enumerate(found) if f.segment == number}
        floats = {w.name: weights.floats(w) for w in segment.weights}
        seen = {f.value: _Sample(len(windows)) for f in mine.values()}
        sweep.through(segment, floats, windows, partial(_watcher, seen))
        by_source = {w.source: floats[w.name] for w in segment.weights if w.rows is None}
        for i, fold in mine.items():
            parts = {n: by_source[n] for n in fold.multiplied if n in by_source}
            chosen = choose(fold, seen[fold.value], parts)
            if chosen is not None:
                scales[i] = chosen.astype(np.float32)
    if progress is not None:
        progress("scales", len(model.segments), len(model.segments))
    return scales


def _watcher(seen: Mapping[str, _Sample], window: int) -> Seen:
    done: set[str] = set()

    def watch(name: str, matrix: int, value: str, rows: Floats) -> None:
        del name, matrix
        if value in seen and value not in done:
            done.add(value)
            seen[value].add(window, rows)

    return watch


def activation_aware(
    types: Mapping[str, BlockType], encoder: Encoder
) -> Callable[[Fold, _Sample, Mapping[str, Floats]], Floats | None]:
    """AWQ: the power of the columns' mean size with which the products of rounded matrices are
    nearest to those of floats; None where none is better than no scales."""

    def choose(fold: Fold, sample: _Sample, parts: Mapping[str, Floats]) -> Floats | None:
        x = sample.rows
        size = _shared(np.abs(x).mean(axis=0), fold)
        best, chosen = np.inf, None
        for power in _POWERS:
            scales = _centred(np.maximum(size, _LEAST * size.max()) ** power)
            lost = sum(
                lost_by(encoder, types[name], w, x, scales[fold.order])
                for name, w in parts.items()
                if name in types
            )
            if lost < best:
                best, chosen = lost, scales if power else None
        return chosen

    return choose


def smoothing(power: float) -> Callable[[Fold, _Sample, Mapping[str, Floats]], Floats | None]:
    """SmoothQuant: values whose columns are of about one size, so that 8 bits do for them; the rest
    of it goes into the weights."""

    def choose(fold: Fold, sample: _Sample, parts: Mapping[str, Floats]) -> Floats | None:
        if not parts:
            return None
        most = _shared(sample.most, fold)
        weight = _shared(np.max([np.abs(w).max(axis=0) for w in parts.values()], axis=0), fold)
        if not most.max() or not weight.max():
            return None
        most = np.maximum(most, _LEAST * most.max())
        weight = np.maximum(weight, _LEAST * weight.max())
        return _centred(most**power / weight ** (1 - power))

    return choose


def lost_by(encoder: Encoder, type: BlockType, w: Floats, x: Floats, scales: Floats) -> float:
    """Squared error of x w^T, over some rows of w, where w is rounded once it is multiplied with
    scales and x is divided by them."""
    w = np.concatenate(list(_some(w)))
    raised = np.ascontiguousarray(w * scales, np.float32)
    importance = ((x / scales) ** 2).mean(axis=0) + np.float32(1e-12)
    decoded = np.empty_like(raised)
    raw = raised.reshape(-1).view(np.uint8)
    encoder.encode(type, _PLAIN, raw, raised.shape, importance, decoded=decoded)
    error = ((decoded - raised) / scales) @ x.T
    return float((error.astype(np.float64) ** 2).sum())


def _some(w: Floats) -> Iterator[Floats]:
    step = max(1, len(w) // _ROWS) * 16
    for first in range(0, len(w), step):
        yield w[first : first + 16]


def _shared(columns: Floats, fold: Fold) -> Floats:
    """The largest of the columns that share a scale."""
    out = np.zeros(fold.width, np.float32)
    np.maximum.at(out, fold.order, columns)
    return out


def _centred(scales: Floats) -> Floats:
    """So that the largest is as far above 1 as the least is below."""
    made: Floats = scales / np.sqrt(scales.max() * scales.min())
    return made
