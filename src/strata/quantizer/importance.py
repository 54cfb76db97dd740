"""How much each column of a matrix matters: means of the squares of what it is multiplied with, in
the files of llama.cpp's `llama-imatrix`, of the GGUF form and the older one.

Source: `imatrix.cpp` of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.formats import open_model
from strata.formats.errors import FormatError, shown
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.quant import by_name
from strata.quantizer.sources import SourceTensor
from strata.records import dataclass

Floats = NDArray[np.float32]
_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
# No column weighs less than this share of the mean one: a channel that the text left alone has to
# be there for others.
_LEAST = 1e-3
_LARGEST_OLD_FILE = 1 << 32


class ImportanceError(FormatError):
    """A file that is no importance matrix, or not that of this model."""


@dataclass(frozen=True)
class Squares:
    """Sums of squares [matrices, k] over `counts` [matrices] rows, each matrix (expert) its own."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True)
class ImportanceMatrix:
    """What a text showed of each tensor, by GGUF name."""

    entries: Mapping[str, Squares]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 512

    @property
    def identity(self) -> str:
        """A digest of all numbers."""
        digest = sha256()
        for name in sorted(self.entries):
            entry = self.entries[name]
            digest.update(name.encode() + entry.sums.tobytes() + entry.counts.tobytes())
        return digest.hexdigest()

    def of(self, tensor: SourceTensor) -> Floats | None:
        """Mean squares [matrices, k], none of them zero; None for a tensor that is not here.

        An expert that no row came to gets the mean of the others. Raises ImportanceError where
        sizes do not agree.
        """
        entry = self.entries.get(tensor.name)
        if entry is None:
            return None
        rows, k = tensor.matrix
        matrices = len(entry.sums)
        if (
            entry.sums.shape[1] != k
            or rows % matrices
            or (matrices > 1 and (len(tensor.shape) < 3 or tensor.shape[0] != matrices))
        ):
            raise ImportanceError(
                f"the importance of {shown(tensor.name)} is for {entry.sums.shape}, but the tensor "
                f"has the shape {tensor.shape}: it was made of another model"
            )
        seen = entry.counts > 0
        counts = np.where(seen, entry.counts, 1)[:, None]
        means = entry.sums.astype(np.float64) / counts
        if not seen.all():
            means[~seen] = means[seen].mean(axis=0) if seen.any() else 1
        floor = np.maximum(means.mean(axis=1, keepdims=True) * _LEAST, 1e-30)
        out: Floats = np.maximum(means, floor).astype(np.float32)
        return out


def read_importance(path: Path) -> ImportanceMatrix:
    """A file of either form. Raises ImportanceError, or a FormatError that says what is wrong."""
    with path.open("rb") as file:
        magic = file.read(4)
    matrix = _read_gguf(path) if magic == b"GGUF" else _read_old(path)
    for name, entry in matrix.entries.items():
        numbers = np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()
        if not numbers or (entry.sums < 0).any() or (entry.counts < 0).any():
            raise ImportanceError(f"{path}: {shown(name)} has sums that no squares have: damaged")
    return matrix


def _read_gguf(path: Path) -> ImportanceMatrix:
    with open_model(path) as file:
        kind = file.metadata.get("general.type")
        if not isinstance(kind, str) or kind != "imatrix":
            raise ImportanceError(f"{path} is a GGUF file, but no importance matrix")
        entries = {}
        for name, info in file.tensors.items():
            if not name.endswith(_SUMS):
                continue
            base = name.removesuffix(_SUMS)
            counts = file.tensors.get(base + _COUNTS)
            if counts is None or {info.type.name, counts.type.name} != {"F32"}:
                raise ImportanceError(f"{path}: {shown(base)} has no counts, or not as numbers")
            sums = file.read(name).view("<f4").reshape(-1, info.shape[-1])
            number = file.read(base + _COUNTS).view("<f4").reshape(-1)
            if len(number) not in (1, len(sums)):
                raise ImportanceError(f"{path}: {shown(base)} has {len(number)} counts")
            entries[base] = Squares(sums, np.broadcast_to(number, len(sums)).copy())
        texts = file.metadata.get(_DATASETS)
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            texts = ()
        return ImportanceMatrix(
            entries,
            tuple(map(str, texts)),
            _whole(file.metadata.get(_CHUNKS), 0),
            _whole(file.metadata.get(_CHUNK_SIZE), 512),
        )


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _read_old(path: Path) -> ImportanceMatrix:
    """Number of entries; of each its name, calls, and means times calls; then calls and text."""
    if path.stat().st_size > _LARGEST_OLD_FILE:
        raise ImportanceError(f"{path} is too large to be an importance matrix")
    raw = path.read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(raw):
            raise ImportanceError(f"{path} is no importance matrix, or was cut off")
        value: int = struct.unpack_from("<i", raw, at)[0]
        at += 4
        return value

    def part(nbytes: int) -> bytes:
        nonlocal at
        if not 0 <= nbytes <= len(raw) - at:
            raise ImportanceError(f"{path} is no importance matrix, or was cut off at byte {at}")
        at += nbytes
        return raw[at - nbytes : at]

    entries = {}
    for _ in range(number()):
        name = part(number()).decode("utf-8", "surrogateescape")
        calls = number()
        values = np.frombuffer(part(4 * number()), "<f4")
        if calls > 0 and len(values):
            entries[name] = Squares(values[None], np.array([calls], np.float32))
    if not entries:
        raise ImportanceError(f"{path} is no importance matrix: it has no entries")
    chunks, text = 0, ""
    if at < len(raw):
        chunks = number()
        text = part(number()).decode("utf-8", "surrogateescape") if at < len(raw) else ""
    return ImportanceMatrix(entries, (text,) if text else (), chunks)


def split_experts(
    matrix: ImportanceMatrix, shapes: Mapping[str, tuple[int, ...]]
) -> ImportanceMatrix:
    """The same, entries of the older form cut into matrices as the tensors have them."""
    entries = dict(matrix.entries)
    for name, entry in matrix.entries.items():
        shape = shapes.get(name, ())
        if len(shape) == 3 and len(entry.sums) == 1 and entry.sums.size == shape[0] * shape[2]:
            sums = entry.sums.reshape(shape[0], shape[2])
            entries[name] = Squares(sums, np.repeat(entry.counts, shape[0]))
    return ImportanceMatrix(entries, matrix.datasets, matrix.chunks, matrix.chunk_size)


def write_importance(path: Path, matrix: ImportanceMatrix) -> None:
    """Write the GGUF form, which `llama-quantize --imatrix` reads."""
    if path.suffix != ".gguf":
        raise UsageError(f"{path} is not named like a GGUF file; end it in .gguf")
    plain = by_name("F32")
    tensors = []
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        counts = entry.counts.reshape(-1, 1)
        tensors.append(TensorSource.of(name + _SUMS, entry.sums.shape, plain, entry.sums))
        tensors.append(TensorSource.of(name + _COUNTS, counts.shape, plain, counts))
    keys = {
        "general.type": "imatrix",
        _DATASETS: list(matrix.datasets) or [""],
        _CHUNKS: np.uint32(matrix.chunks),
        _CHUNK_SIZE: np.uint32(matrix.chunk_size),
    }
    write_gguf(path, keys, tensors)
