"""Reading weights natively: files opened once, places of weights in them, parallel loading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import strata._native as _native
from strata.backends.cpu.experts import PANEL, padded_rows
from strata.backends.settings import Reading
from strata.backends.weights import MatrixPlace, WeightError, WeightReadError, WeightSource
from strata.formats.disk_file import DiskFile
from strata.program import Weight
from strata.quant import BlockType
from strata.records import dataclass

# Block formats that no GGUF file has, by their ids in csrc/kernels/kernels.h.
_OWN_FORMATS = {"F8_E4M3_B128": 1000}

WeightLoad = tuple[_native.WeightPlace, _native.PackedWeight, int]
"""A weight in its file, the memory that it goes to, and at which panel of that it begins."""

_STORAGE = {"rows": 0, "columns": 1, "scaled": 2}


def native_id(block_type: BlockType) -> int:
    """The id in csrc/kernels/kernels.h; one without kernels gets an id that no kernel knows."""
    own = _OWN_FORMATS.get(block_type.name, block_type.gguf_id)
    return -1 if own is None else own


@dataclass(frozen=True)
class ReadCounts:
    """Bytes of weights read so far, bytes that the system was asked for (alignment adds some), and
    seconds during which some read was under way."""

    wanted: int = 0
    from_disk: int = 0
    reads: int = 0
    reading_s: float = 0.0


@contextmanager
def read_errors() -> Iterator[None]:
    """Turns the native reader's error into WeightReadError."""
    try:
        yield
    except _native.ReadError as error:
        raise WeightReadError(str(error)) from None


class WeightReader:
    """Loads weights, and says where streamed ones are."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.counters = _native.ReadCounters()
        self.row_counters = _native.ReadCounters()
        self._files: dict[Path, _native.WeightFile] = {}

    def place(self, weight: Weight, source: WeightSource) -> _native.WeightPlace | None:
        """Where a matrix is; None for one that has to be read through ``source``."""
        found = source.place(weight)
        return None if found is None else self._place(weight, source, found, *weight.matrix)

    def expert_matrix(self, weight: Weight, source: WeightSource) -> _native.ExpertMatrix | None:
        """Where experts are of which a cache holds some; None as with ``place``."""
        places = self.expert_places(weight, source)
        return None if places is None else _native.ExpertMatrix(places, *weight.shape)

    def expert_places(
        self, weight: Weight, source: WeightSource
    ) -> list[_native.WeightPlace] | None:
        """Where the matrices of experts are: one place if they are of one tensor and none ends
        within a panel, else one for each. None as with ``place``."""
        experts, n, k = weight.shape
        found = source.expert_places(weight)
        if not found:
            return None
        if n % PANEL == 0 and not weight.experts and found[0].storage != "scaled":
            step = found[1].offset - found[0].offset if experts > 1 else 0
            # Parts of every matrix, or columns of it, do not lie one after the other.
            run = n if weight.each or found[0].storage == "columns" else 0
            place = self._place(weight, source, found[0], experts * n, k, run, step if run else 0)
            return [place]
        return [self._place(weight, source, place, n, k) for place in found]

    def _place(
        self,
        weight: Weight,
        source: WeightSource,
        found: MatrixPlace,
        n: int,
        k: int,
        run: int = 0,
        step: int = 0,
    ) -> _native.WeightPlace:
        try:
            return _native.WeightPlace(
                self._file(found.file),
                found.offset,
                native_id(source.type(weight)),
                n,
                k,
                _STORAGE[found.storage],
                found.stored_width,
                found.first_column,
                None if found.factors is None else np.ascontiguousarray(found.factors, np.float32),
                run,
                step,
            )
        except ValueError as error:
            raise _unusable(weight, source, error) from None

    def rows(self, place: _native.WeightPlace) -> _native.FileRows:
        """A table that stays on disk, of which rows are fetched."""
        return _native.FileRows(place, self.row_counters)

    def allocate(
        self, weight: Weight, source: WeightSource, *, routed: bool = False
    ) -> _native.PackedWeight:
        """Memory for a matrix in packed form, not filled."""
        n, k = packed_shape(weight, routed=routed)
        try:
            return _native.PackedWeight(native_id(source.type(weight)), n, k)
        except ValueError as error:
            raise _unusable(weight, source, error) from None

    def load(self, loads: Sequence[WeightLoad]) -> None:
        """Fill packed weights from their places; WeightReadError if a file fails."""
        if loads:
            with read_errors():
                _native.load_weights(
                    loads, self.reading.threads, self.reading.request_bytes, self.counters
                )

    @property
    def direct(self) -> bool:
        """Whether files are in fact read past the page cache."""
        return all(file.direct for file in self._files.values()) and bool(self._files)

    def cached_bytes(self) -> int:
        """Page cache that the opened files take, whoever brought it there."""
        return sum(int(file.cached_bytes) for file in self._files.values())

    def _file(self, file: DiskFile) -> _native.WeightFile:
        if file.path not in self._files:
            seen = file.identity
            with read_errors():
                self._files[file.path] = _native.WeightFile(
                    str(file.path),
                    seen.device,
                    seen.inode,
                    seen.size,
                    seen.mtime_ns,
                    self.reading.direct,
                    self.reading.drop_behind,
                )
        return self._files[file.path]


def packed_shape(weight: Weight, *, routed: bool) -> tuple[int, int]:
    """Rows and columns of a matrix in packed form; of experts (``routed``) of all together."""
    if not routed:
        return weight.matrix
    experts, n, k = weight.shape
    return padded_rows(experts, n), k


def packed_nbytes(weight: Weight, source: WeightSource, *, routed: bool = False) -> int:
    """Bytes that a matrix takes in packed form."""
    n, k = packed_shape(weight, routed=routed)
    try:
        return int(_native.packed_bytes(native_id(source.type(weight)), n, k))
    except ValueError as error:
        raise _unusable(weight, source, error) from None


def counts(counters: _native.ReadCounters) -> ReadCounts:
    """What native counters have counted so far."""
    c = counters
    return ReadCounts(c.wanted, c.from_disk, c.reads, c.reading_s)


def _unusable(weight: Weight, source: WeightSource, error: ValueError) -> WeightError:
    return WeightError(f"tensor '{weight.source}' ({source.type(weight).name}): {error}")
