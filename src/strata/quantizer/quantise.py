"""A model's tensors into other types, one after the other, in pieces that fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.formats.errors import shown
from strata.formats.gguf import DEFAULT_ALIGNMENT
from strata.formats.gguf_writer import gguf_header, write_gguf
from strata.formats.writing import TensorSource
from strata.memory import process_memory
from strata.quant import BlockType, by_name
from strata.quantizer.encoder import Encoder, NotFinite
from strata.quantizer.sources import Raw, Source, SourceTensor
from strata.records import dataclass
from strata.sizes import format_size

Progress = Callable[[str, int, int | None], None]
_VERSION = 2
"""GGUF's `general.quantization_version`."""
_ENCODERS = "1"
"""Goes up when encoders give other bytes, so that no file is resumed across that."""
_PIECE = 32 << 20
_LEAST_ROWS = 16
# Buffers of the file that is written, of reading a header again, and of threads.
_BESIDE = 24 << 20


class Importance(Protocol):
    """How much the squared error of each column of a tensor matters."""

    @property
    def identity(self) -> str:
        """Differs where what it gives may."""

    def of(self, tensor: SourceTensor) -> NDArray[np.float32] | None:
        """[matrices, k], a row for each matrix of the tensor (or one for all); None: all alike."""


@dataclass(frozen=True)
class Written:
    """What came of it: bytes of tensors, parameters, and tensors by type."""

    nbytes: int
    parameters: int
    types: Mapping[str, int]

    @property
    def bits(self) -> float:
        """Bits of a weight, scales and all."""
        return 8 * self.nbytes / self.parameters


class Compensation(Protocol):
    """Rounds some tensors with what it knows of the whole model."""

    @property
    def identity(self) -> str:
        """Differs where what it gives may."""

    def handles(self, name: str) -> bool:
        """Whether it rounds that tensor."""

    def order(self) -> list[str]:
        """All tensors, in the order in which they are best asked for."""

    def pieces(self, name: str) -> Iterable[Raw]:
        """The bytes of a tensor that it handles."""


class TooSmall(UsageError):
    """A budget in which not even some rows can be worked on."""


def quantise(
    source: Source,
    out: Path,
    types: Mapping[str, BlockType],
    *,
    file_type: int,
    importance: Importance | None = None,
    compensation: Compensation | None = None,
    extra: Mapping[str, Any] | None = None,
    memory: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write ``out`` with the tensors of ``source``, those named in ``types`` in these types.

    The same source, types and importance give the same bytes, whatever ``memory`` (for the whole
    process) and ``threads`` are. A run that was interrupted is gone on with by the next one of the
    same kind. Raises TooSmall, NotFinite, DiskFullError, WriteError, or what reading raises.
    """
    encoder = Encoder(threads)
    targets = {name: types.get(name, t.type) for name, t in source.tensors.items()}
    held = max((t.held for t in source.tensors.values()), default=0)
    # What is read ahead of the next tensor may take as much again as half a piece.
    piece = _PIECE if memory is None else min(_PIECE, 2 * (_room(memory) - held) // 3)
    for tensor in source.tensors.values():
        _check_piece(tensor, targets[tensor.name], piece, memory)
    values = {
        **source.values,
        "general.quantization_version": np.uint32(_VERSION),
        "general.file_type": np.uint32(file_type),
        **(extra or {}),
    }
    identity = importance.identity if importance else ""
    order = list(source.tensors)
    if compensation is not None:
        order, identity = compensation.order(), identity + compensation.identity
    total = sum(targets[n].tensor_nbytes(t.shape) for n, t in source.tensors.items())
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(out.name, done, total)

    spans = {
        name: _spans(t, targets[name], piece, importance) for name, t in source.tensors.items()
    }
    plain = [n for n in order if compensation is None or not compensation.handles(n)]
    with _Reads([(source.tensors[name], spans[name]) for name in plain]) as reads:
        tensors = [
            TensorSource(
                tensor.name,
                tensor.shape,
                targets[tensor.name],
                partial(compensation.pieces, tensor.name)
                if compensation is not None and compensation.handles(tensor.name)
                else partial(_pieces, tensor, targets[tensor.name], encoder, reads, importance),
            )
            for tensor in (source.tensors[name] for name in order)
        ]
        job = "\n".join((_ENCODERS, source.identity, identity))
        write_gguf(out, values, tensors, written=written, job=sha256(job.encode()).hexdigest())
    source.forget()
    counts: dict[str, int] = {}
    for type in targets.values():
        counts[type.name] = counts.get(type.name, 0) + 1
    parameters = sum(t.matrix[0] * t.matrix[1] for t in source.tensors.values())
    return Written(total, parameters, counts)


def header_nbytes(source: Source) -> int:
    """Bytes of a file of this model beside those of its tensors, at most."""
    values = {
        **source.values,
        "general.quantization_version": np.uint32(_VERSION),
        "general.file_type": np.uint32(0),
    }
    plain = by_name("F32")
    stand_ins = [TensorSource(n, t.shape, plain, tuple) for n, t in source.tensors.items()]
    return len(gguf_header(values, stand_ins)) + DEFAULT_ALIGNMENT * len(stand_ins)


def _room(memory: int) -> int:
    return memory - process_memory().total - _BESIDE


def _row_bytes(tensor: SourceTensor, target: BlockType) -> int:
    """What a row takes while it is worked on: twice as read, as numbers, and twice as written."""
    k = tensor.shape[-1] if tensor.shape else 1
    read = -(-k // tensor.type.elements) * tensor.type.nbytes
    made = -(-k // target.elements) * target.nbytes
    if target is tensor.type:
        return 3 * read
    return 2 * read + 8 * k + 2 * made


def _check_piece(tensor: SourceTensor, target: BlockType, piece: int, memory: int | None) -> None:
    least = _row_bytes(tensor, target) * min(_LEAST_ROWS, max(tensor.matrix[0], 1))
    if memory is not None and least > piece:
        need = memory + 3 * (least - piece) // 2
        raise TooSmall(
            f"tensor {shown(tensor.name)} cannot be worked on in {format_size(memory)}: give at "
            f"least {format_size(-(-need // 1_000_000) * 1_000_000)}"
        )


def _weights(
    tensor: SourceTensor, target: BlockType, importance: Importance | None
) -> NDArray[np.float32] | None:
    return None if target is tensor.type or importance is None else importance.of(tensor)


def _spans(
    tensor: SourceTensor, target: BlockType, piece: int, importance: Importance | None
) -> list[tuple[int, int]]:
    """Which rows are worked on at once: no two matrices where each has weights of its own."""
    rows = tensor.matrix[0] if tensor.shape else 1
    each = max(_LEAST_ROWS, piece // _row_bytes(tensor, target) // _LEAST_ROWS * _LEAST_ROWS)
    weights = _weights(tensor, target, importance)
    matrix = rows // len(weights) if weights is not None and len(weights) > 1 else rows
    return [
        (first, min(first + each, begin + matrix))
        for begin in range(0, rows, matrix)
        for first in range(begin, begin + matrix, each)
    ]


class _Reads:
    """Reads tensors in their order, a span of rows ahead of what is worked on, and of the last one
    the first of the next tensor, unless there is room for what but one of them holds."""

    def __init__(self, work: list[tuple[SourceTensor, list[tuple[int, int]]]]) -> None:
        self._tensors = {tensor.name: (tensor, spans) for tensor, spans in work}
        order = [tensor for tensor, _ in work]
        self._behind = {a.name: b.name for a, b in pairwise(order) if not (a.held and b.held)}
        self._reader = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[str, int], Future[Raw]] = {}

    def __enter__(self) -> _Reads:
        return self

    def __exit__(self, *raised: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def pieces(self, name: str) -> Iterator[tuple[int, int, Raw]]:
        """First and last row of each span, and its bytes."""
        spans = self._tensors[name][1]
        for number, (first, last) in enumerate(spans):
            self._start(name, number)
            raw = self._ahead.pop((name, number)).result()
            if number + 1 < len(spans):
                self._start(name, number + 1)
            elif name in self._behind:
                self._start(self._behind[name], 0)
            yield first, last, raw

    def _start(self, name: str, number: int) -> None:
        if (name, number) not in self._ahead:
            tensor, spans = self._tensors[name]
            self._ahead[name, number] = self._reader.submit(tensor.rows, *spans[number])


def _pieces(
    tensor: SourceTensor,
    target: BlockType,
    encoder: Encoder,
    reads: _Reads,
    importance: Importance | None,
) -> Iterator[Raw]:
    rows, k = tensor.matrix if tensor.shape else (1, 1)
    weights = _weights(tensor, target, importance)
    matrix = rows // len(weights) if weights is not None and len(weights) > 1 else rows
    for first, last, raw in reads.pieces(tensor.name):
        if target is tensor.type:
            yield raw
            continue
        mine = None if weights is None else weights[first // matrix if len(weights) > 1 else 0]
        try:
            yield encoder.encode(target, tensor.type, raw, (last - first, k), mine)
        except NotFinite as error:
            raise NotFinite(
                f"tensor {shown(tensor.name)}, rows {first} to {last}: {error}: the source is "
                "damaged"
            ) from None


def type_named(name: str) -> BlockType:
    """The block type of that name, in any case, if it can be written."""
    from strata.quantizer.encoder import encodable

    type = by_name(name.upper())
    if not encodable(type):
        raise UsageError(f"there is no encoder for {type.name}")
    return type
