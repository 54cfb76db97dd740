"""Where a tensor's bytes are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from strata.formats.errors import (
    BlockShapeError,
    SizeOverflowError,
    TensorOutOfFileError,
    TensorOverlapError,
    shown,
)
from strata.quant import BlockType
from strata.records import dataclass

_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model file.

    `shape` is rows first (numpy order, GGUF's dimensions reversed). `offset` is absolute in `path`.
    The bytes at [offset, offset + nbytes) are the tensor, except for the type F8_E4M3_B128, whose
    blocks are put together from two places of the file on reading.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    path: Path
    offset: int
    nbytes: int


def checked_nbytes(name: str, shape: tuple[int, ...], type: BlockType, where: str) -> int:
    """Bytes of a tensor whose shape comes from a file; `where` opens the message."""
    count = 1
    for length in shape:
        count *= length
        if count > _LARGEST:
            raise SizeOverflowError(
                f"{where}: tensor {shown(name)} has shape {shape}, more than 2^63 elements: "
                "the file is damaged"
            )
    if type.elements > 1 and (not shape or shape[-1] % type.elements):
        raise BlockShapeError(
            f"{where}: tensor {shown(name)} has rows of {shape[-1] if shape else 1} elements, not "
            f"a multiple of the {type.elements} in a {type.name} block: the file is damaged"
        )
    nbytes = count // type.elements * type.nbytes
    if nbytes > _LARGEST:
        raise SizeOverflowError(
            f"{where}: tensor {shown(name)} of shape {shape} and type {type.name} takes {nbytes} "
            "bytes, more than 2^63: the file is damaged"
        )
    return nbytes


def check_inside(info: TensorInfo, file_size: int) -> None:
    """Raise TensorOutOfFileError unless all bytes of the tensor are in its file."""
    if info.offset + info.nbytes > file_size:
        raise TensorOutOfFileError(
            f"{info.path}: tensor {shown(info.name)} takes bytes {info.offset} to "
            f"{info.offset + info.nbytes}, but the file ends at byte {file_size}: it was cut off; "
            "download or copy it again"
        )


def check_disjoint(tensors: Iterable[TensorInfo]) -> None:
    """Raise TensorOverlapError if two tensors of one file share a byte."""
    previous: TensorInfo | None = None
    for info in sorted(tensors, key=lambda info: (info.offset, info.nbytes)):
        if info.nbytes == 0:
            continue
        if previous is not None and info.offset < previous.offset + previous.nbytes:
            raise TensorOverlapError(
                f"{info.path}: tensors {shown(previous.name)} and {shown(info.name)} overlap at "
                f"byte {info.offset}: the file is damaged"
            )
        previous = info
