"""One opened model, whatever its files look like."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    RowRangeError,
    TensorNameError,
    UnknownFormatError,
    WriteError,
    shown,
)
from strata.formats.gguf_split import open_gguf
from strata.formats.tensor_info import TensorInfo
from strata.records import dataclass

if TYPE_CHECKING:
    from strata.formats.foreign.store import Progress
    from strata.formats.foreign.weight import ForeignWeight
    from strata.formats.fp8 import Fp8Weight

Kind = Literal["gguf", "huggingface"]
Rows = tuple[int, int]
# Rows of 8-bit weights put together at a time, so that reading needs little beside its result.
_FP8_ROWS = 256


@dataclass(frozen=True)
class Stored:
    """Where the bytes of a tensor begin, for those who read them without `ModelFile`.

    The rows follow each other in the tensor's block format. Those of F8_E4M3_B128 are k bytes each
    and have their scales in `factors` (see `Fp8Weight.factors`), which is None for other types.
    """

    file: DiskFile
    offset: int
    factors: NDArray[np.float32] | None


class ModelFile:
    """An opened GGUF model (one file or all parts), Hugging Face directory, or file of formats that
    are studied, which counts as GGUF.

    Opening reads headers only. `metadata` is GGUF's key/values, or the object in config.json.
    Reading is safe from several threads; bytes come straight from the file at each call, nothing
    is cached. Use as a context manager or call `close`.
    """

    kind: Kind
    path: Path
    directory: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    room: int | None = None

    def __init__(self, path: str | Path, room: int | None = None) -> None:
        """Open `path`, a .gguf file (any part of a split model), a directory, or a .safetensors
        file as `strata.formats.research` has it.

        `room` are the bytes that headers and files beside the weights may take each while they are
        read, None where no budget says.
        Raises a FormatError of the kind that fits what is wrong.
        """
        self.path = Path(path)
        self.room = room
        with ExitStack() as resources:
            if os.path.isdir(self.path):  # False, not an error, for a path that cannot be
                from strata.formats.foreign import present_foreign
                from strata.formats.fp8 import present
                from strata.formats.huggingface import open_directory

                self.kind = "huggingface"
                self.directory = self.path
                files, self.metadata, stored = open_directory(self.path, resources, room)
                self._files = {file.path: file for file in files}
                stored, self._foreign = present_foreign(
                    stored, self.metadata, str(self.path), self._small
                )
                tensors, self._fp8 = present(stored, self.metadata, str(self.path))
            elif self.path.suffix == ".safetensors":
                self.kind = "gguf"
                self.directory = self.path.parent
                # With its encoders it takes as long to import as all other formats together.
                from strata.formats.research import open_research

                one, self.metadata, tensors, self._foreign = open_research(
                    self.path, resources, room
                )
                files, self._fp8 = [one], {}
            else:
                self.kind = "gguf"
                self.directory = self.path.parent
                _check_suffix(self.path)
                files, self.metadata, tensors = open_gguf(self.path, resources, room)
                self._fp8, self._foreign = {}, {}
            self._repacked: tuple[DiskFile, dict[str, TensorInfo]] | None = None
            self._files = {file.path: file for file in files}
            self._resources = resources.pop_all()
        self.tensors = MappingProxyType(tensors)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold tensors, in order."""
        return tuple(self._files)

    @property
    def files(self) -> tuple[DiskFile, ...]:
        """The opened files that hold tensors, in order."""
        return tuple(self._files.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as `read` gives them."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that hold tensors, headers and padding included."""
        return sum(file.size for file in self._files.values())

    def sidecar(self, name: str) -> Path | None:
        """A file beside the weights of a Hugging Face directory ('tokenizer.json',
        'generation_config.json', 'chat_template.jinja', ...), or None if it is not there."""
        path = self.directory / name
        return path if self.kind == "huggingface" and os.path.isfile(path) else None

    def read(self, name: str, rows: Rows | None = None) -> NDArray[np.uint8]:
        """The tensor's bytes in block format, uint8 [nbytes], or those of rows a to b (b excluded).

        Raises TensorNameError, RowRangeError, or ShortReadError if the file has become shorter.
        """
        info = self._info(name)
        buffer = np.empty(_row_span(info, rows)[1], dtype=np.uint8)
        self.readinto(name, buffer, rows)
        return buffer

    def readinto(self, name: str, buffer: NDArray[np.uint8], rows: Rows | None = None) -> None:
        """Like `read`, into a contiguous uint8 array of exactly the right size."""
        info = self._info(name)
        start, nbytes = _row_span(info, rows)
        if buffer.dtype != np.uint8 or buffer.size != nbytes or not buffer.flags.carray:
            raise RowRangeError(
                f"tensor {shown(name)} needs a contiguous, writable buffer of {nbytes} bytes, not "
                f"{buffer.size} elements of {buffer.dtype}"
            )
        if nbytes == 0:
            return
        if name in self._foreign:
            self._read_foreign(self._foreign[name], buffer, rows or (0, info.shape[0]))
        elif name in self._fp8:
            self._read_fp8(self._fp8[name], buffer, rows or (0, info.shape[0]))
        else:
            self._file(info).readinto(info.offset + start, buffer.reshape(-1).data)

    def stored(self, name: str) -> Stored:
        """Where the tensor is. Reads the scales of 8-bit tensors and nothing else."""
        info = self._info(name)
        if name in self._foreign:
            if self._repacked is None:
                raise TensorNameError(f"{self.path}: tensor {shown(name)} was not repacked yet")
            file, repacked = self._repacked
            return Stored(file, repacked[name].offset, None)
        if name not in self._fp8:
            return Stored(self._file(info), info.offset, None)
        source = self._fp8[name]
        scale = np.empty(source.scale.nbytes, dtype=np.uint8)
        self._file(source.scale).readinto(source.scale.offset, scale.data)
        return Stored(self._file(source.weight), source.weight.offset, source.factors(scale))

    def unchanged(self) -> bool:
        """Whether nobody has written to the files since they were opened, and they are open."""
        return all(file.unchanged() for file in self._all_files())

    def forget_cached(self) -> None:
        """Give back the page cache that the files take, where the system lets us."""
        for file in self._all_files():
            file.forget_cached()

    def _all_files(self) -> list[DiskFile]:
        repacked = [] if self._repacked is None else [self._repacked[0]]
        return [*self._files.values(), *repacked]

    @property
    def foreign(self) -> bool:
        """Whether weights are kept in parts, as others quantised them: ``repack`` them before they
        are asked for with ``stored``. `read` puts together what it gives."""
        return bool(self._foreign)

    def repack(self, directory: Path, progress: Progress | None = None) -> None:
        """Put such weights together in a file in `directory`, unless one of these files is there.

        Of one weight the parts are in memory at a time. Raises DiskFullError, WriteError, and
        ForeignFormatError for what is not as config.json says.
        """
        if not self._foreign or self._repacked is not None:
            return
        from strata.formats.foreign.store import open_store, store_name, write_store

        path = directory / store_name(self.files, self._foreign)
        found = open_store(path, self._foreign, self._resources)
        if found is None:
            write_store(path, self._foreign, self._whole, self._forget_parts, progress)
            found = open_store(path, self._foreign, self._resources)
        if found is None:
            raise WriteError(f"{path} does not hold what was written: is its disk in order?")
        self._repacked = found
        found[0].forget_cached()

    def _small(self, info: TensorInfo) -> bytes:
        return self._file(info).read(info.offset, info.nbytes)

    def _whole(self, info: TensorInfo) -> NDArray[np.uint8]:
        data = np.empty(info.nbytes, np.uint8)
        self._file(info).readinto(info.offset, data.data)
        return data

    def _forget_parts(self, weight: ForeignWeight) -> None:
        for info in weight.parts.values():
            self._file(info).forget_cached(info.offset, info.nbytes)

    def _read_foreign(self, weight: ForeignWeight, buffer: NDArray[np.uint8], rows: Rows) -> None:
        at = 0
        for piece in weight.pieces(weight.load(self._whole), *rows):
            buffer.reshape(-1)[at : at + piece.size] = piece
            at += piece.size

    def _read_fp8(self, source: Fp8Weight, buffer: NDArray[np.uint8], rows: Rows) -> None:
        k = source.weight.shape[1]
        scale = np.empty(source.scale.nbytes, dtype=np.uint8)
        self._file(source.scale).readinto(source.scale.offset, scale.data)
        out = buffer.reshape(rows[1] - rows[0], -1)
        for first in range(rows[0], rows[1], _FP8_ROWS):
            last = min(first + _FP8_ROWS, rows[1])
            weight = np.empty((last - first) * k, dtype=np.uint8)
            self._file(source.weight).readinto(source.weight.offset + first * k, weight.data)
            out[first - rows[0] : last - rows[0]] = source.interleave(weight, scale, first)

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorNameError(f"{self.path} has no tensor {shown(name)}") from None

    def _file(self, info: TensorInfo) -> DiskFile:
        return self._files[info.path]

    def close(self) -> None:
        """Close the files; reading afterwards raises ClosedError. Safe to call twice."""
        self._resources.close()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_model(path: str | Path, room: int | None = None) -> ModelFile:
    """Open a GGUF file, one part of a split GGUF model, or a Hugging Face directory. `room` is that
    of `ModelFile`."""
    return ModelFile(path, room)


def _check_suffix(path: Path) -> None:
    if path.suffix == ".json":
        raise UnknownFormatError(
            f"{path} is part of a Hugging Face model: give its directory {path.parent} instead"
        )


def _row_span(info: TensorInfo, rows: Rows | None) -> tuple[int, int]:
    """First byte, counted from the tensor's start, and number of bytes of some rows."""
    if rows is None:
        return 0, info.nbytes
    first, last = rows
    if not info.shape or not 0 <= first <= last <= info.shape[0]:
        raise RowRangeError(
            f"tensor {shown(info.name)} of shape {info.shape} has no rows {first} to {last}"
        )
    if first == last:
        return 0, 0
    blocks = info.nbytes // info.type.nbytes
    if blocks * first % info.shape[0] or blocks * last % info.shape[0]:
        raise RowRangeError(
            f"tensor {shown(info.name)} has one axis of {info.shape[0]} elements in "
            f"{info.type.name} blocks of {info.type.elements}: {first} to {last} cuts a block"
        )
    start, end = (blocks * row // info.shape[0] * info.type.nbytes for row in (first, last))
    return start, end - start
