"""A model whose residual stream is turned: all that writes it and all that reads it, so that
answers stay and no column is much larger than others.

Norms' gains go into the matrices behind them, and the stream is multiplied with a matrix of
Hadamard's kind. Source: QuaRot (Ashkboos and others, arXiv 2404.00456), without what would have to
be turned while the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from strata.errors import StrataError
from strata.formats import ModelFile
from strata.program import Model, Segment, Weight
from strata.program.ops import Op
from strata.quant import dequantize
from strata.quantizer.presented import Presented, Raw, changed_infos, in_pieces, piece_nbytes
from strata.quantizer.sources import Source
from strata.records import dataclass

Doubles = NDArray[np.float64]
_TABLE, HEAD = "token_embd.weight", "output.weight"
_SEED = 2404


class NotTurnable(StrataError):
    """What of an architecture does not turn with the stream."""


@dataclass
class Turn:
    """What is done with tensors, by their names: columns turned, after being multiplied with a gain
    where there is one (``reads``); rows turned (``writes``); gains that become 1 (``gains``)."""

    reads: dict[str, str | None] = field(default_factory=dict)
    writes: set[str] = field(default_factory=set)
    gains: set[str] = field(default_factory=set)
    head_of_table: bool = False
    """Whether the head reads the table of embeddings, and so needs a tensor of its own."""


def orthogonal(width: int) -> Doubles:
    """The matrix of odd size that goes with Hadamard's to ``width``: random, the same each time."""
    odd = width
    while odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return np.ones((1, 1))
    q, r = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((odd, odd)))
    made: Doubles = q * np.sign(np.diag(r))
    return made


def turned(x: Doubles) -> Doubles:
    """Rows [n, width] times the Kronecker product of Hadamard's matrix of the power of two in
    ``width`` and ``orthogonal``."""
    n, width = x.shape
    small = orthogonal(width)
    y = x.reshape(n, width // len(small), len(small)) @ small
    power, apart = y.shape[1], 1
    while apart < power:
        pairs = y.reshape(n, power // (2 * apart), 2, apart, len(small))
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        apart *= 2
    made: Doubles = y.reshape(n, width) / np.sqrt(power)
    return made


def find_turn(model: Model) -> Turn:
    """How the stream of a model is turned. Raises NotTurnable."""
    turn = Turn()
    for segment in model.segments:
        _look(segment, turn)
    twice = turn.reads.keys() & turn.writes
    if twice:
        raise NotTurnable(f"{sorted(twice)[0]} both reads and writes it")
    return turn


def _look(segment: Segment, turn: Turn) -> None:
    program = segment.program
    weights = {w.name: w for w in segment.weights}
    stream = set(program.inputs)
    normed: dict[str, str | None] = {}
    written: dict[str, list[Weight]] = {}

    def whole(name: str) -> Weight:
        weight = weights.get(name)
        if weight is None or weight.transform != "none" or weight.each:
            raise NotTurnable(f"{name} is changed while it is read")
        return weight

    def reads(name: str, value: str) -> None:
        weight = whole(name)
        if turn.reads.setdefault(weight.source, normed[value]) != normed[value]:
            if weight.source != _TABLE or turn.head_of_table:
                raise NotTurnable(f"{weight.source} is read in two ways")
            turn.head_of_table = True
            turn.reads[HEAD] = normed[value]

    for op in program.ops:
        if op.kind == "embed":
            turn.reads.setdefault(whole(op.inputs[0]).source, None)
            stream.add(op.output)
        elif op.kind == "rms_norm" and op.inputs[0] in stream and not op.attrs["group"]:
            gain = None
            if len(op.inputs) > 1:
                gain = whole(op.inputs[1]).source
                turn.gains.add(gain)
            normed[op.output] = gain
        elif op.kind == "select" and op.inputs[0] in stream:
            stream.add(op.output)
        elif op.kind == "matmul" and op.inputs[0] in normed:
            if len(weights[op.inputs[1]].shape) != 2:
                raise NotTurnable(f"{op.inputs[1]} is several matrices")
            reads(op.inputs[1], op.inputs[0])
            written[op.output] = _writers(op, weights)
        elif op.kind == "matmul":
            if _touches(op, stream):
                raise NotTurnable(f"{op.inputs[1]} reads it without a norm")
            written[op.output] = _writers(op, weights)
        elif op.kind == "scale" and op.inputs[0] in written:
            written[op.output] = written[op.inputs[0]]
        elif op.kind == "scale" and op.inputs[0] in stream:
            stream.add(op.output)
        elif op.kind == "add" and _touches(op, stream):
            for value in op.inputs:
                if value in stream:
                    continue
                if value not in written or len(program.readers(value)) > 1:
                    raise NotTurnable(f"{value} of {segment.name} is added to it")
                for weight in written[value]:
                    if whole(weight.name).rows is not None:
                        raise NotTurnable(f"{weight.name} is a part of a tensor")
                    turn.writes.add(weight.source)
            stream.add(op.output)
        elif _touches(op, stream) or _touches(op, normed):
            raise NotTurnable(f"the Op {op.kind} reads it")
    for value, name in zip(program.outputs, segment.outputs, strict=True):
        if value not in stream and name != "logits":
            raise NotTurnable(f"{segment.name} gives {name}")


def _writers(op: Op, weights: Mapping[str, Weight]) -> list[Weight]:
    """The weights whose rows are the columns of a product."""
    return [weights[name] for name in op.inputs[1:] if name in weights]


def _touches(op: Op, values: object) -> bool:
    return any(name in values for name in op.inputs)  # type: ignore[operator]


class Turned(Presented):
    """The model with its stream turned, in 32-bit floats where it is."""

    def __init__(self, file: ModelFile, source: Source, turn: Turn) -> None:
        tensors = dict(source.tensors)
        if turn.head_of_table:
            tensors[HEAD] = replace(tensors[_TABLE], name=HEAD)
        changed = {*turn.reads, *turn.writes, *turn.gains}
        infos = changed_infos(file, tensors.values(), changed)
        super().__init__(file, source.keys, source.values, infos)
        self._tensors = tensors
        self._turn = turn
        self._last: tuple[str, Raw] | None = None
        self.changes = sha256(f"turned {_SEED} {source.identity}".encode()).hexdigest()

    def matrix_rows(self, name: str, first: int, last: int) -> Raw:
        """See Presented."""
        turn = self._turn
        if name in turn.gains:
            return np.ones(self._tensors[name].shape, np.float32).view(np.uint8)
        tensor = self._tensors[name]
        k = tensor.matrix[1]
        if name in turn.reads:
            gain = turn.reads[name]
            by = np.ones((1, k)) if gain is None else self._floats(gain, 0, 1).astype(np.float64)
            made = in_pieces(first, last, k, lambda a, b: turned(by * self._floats(name, a, b)))
            return made.reshape(-1).view(np.uint8)
        if name not in turn.writes:
            return tensor.rows(first, last)
        held = self._last
        if held is None or held[0] != name:
            self._last = None
            # Another thread may put another in its place.
            self._last = held = name, self._written(name)
        return held[1][4 * first * k : 4 * last * k]

    def _written(self, name: str) -> Raw:
        """All of a tensor whose rows are turned; a vector is one column of them."""
        x = self._floats(name, 0, self._tensors[name].matrix[0])
        vector = len(self._tensors[name].shape) == 1
        columns = x if vector else x.T
        rows, width = columns.shape
        made = in_pieces(0, rows, width, lambda a, b: turned(columns[a:b].astype(np.float64)))
        return np.ascontiguousarray(made if vector else made.T).reshape(-1).view(np.uint8)

    def _floats(self, name: str, first: int, last: int) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        raw = tensor.rows(first, last)
        return dequantize(tensor.type, raw, (last - first, tensor.matrix[1]))

    def held(self, name: str) -> int:
        """See Presented: a matrix whose rows are turned is whole: stored, as floats, turned
        and in the order in which it is kept."""
        tensor = self._tensors[name]
        rows, k = tensor.matrix
        if name in self._turn.writes:
            return tensor.held + 4 * 4 * rows * k + piece_nbytes(max(rows, k))
        return tensor.held + (piece_nbytes(k) if name in self._turn.reads else 0)
