"""The header of one safetensors file: bytes in, a checked index out.

Source: the format section of the safetensors project's README: 8 bytes of length, a JSON object,
then the tensors' bytes without holes.
"""

from __future__ import annotations

from typing import Any

from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    DtypeError,
    HeaderLengthError,
    HeaderTooLargeError,
    JsonTypeError,
    RankError,
    TensorHoleError,
    TensorOverlapError,
    TensorSizeError,
    TruncatedError,
    shown,
)
from strata.formats.json_text import parse_object
from strata.formats.side_files import Bound
from strata.formats.tensor_info import TensorInfo, check_inside, checked_nbytes
from strata.quant import BlockType, by_name

MAX_HEADER_BYTES = 100_000_000
_MAX_VALUES = 8_000_000
"""Of a million tensors; the most that is known is some ten thousand."""
MAX_RANK = 8
_NAMES = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 BOOL I64 I32 I16 I8 U64 U32 U16 U8"
DTYPES = {name: by_name(name) for name in _NAMES.split()}


def read_header(file: DiskFile, room: int | None = None) -> dict[str, TensorInfo]:
    """Read and check the header; the data is not touched. ``room`` are the bytes that this may
    take, where a budget says. Raises the FormatError that fits."""
    return read_noted_header(file, room)[0]


def read_noted_header(
    file: DiskFile, room: int | None = None
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The same, and what ``__metadata__`` says."""
    if file.size < 8:
        raise TruncatedError(
            f"{file.path} has {file.size} bytes, too few for a safetensors file: it was cut off; "
            "download or copy it again"
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise HeaderLengthError(
            f"{file.path}: the header is said to be {length} bytes long; at most "
            f"{MAX_HEADER_BYTES} are allowed and the file has {file.size - 8} after byte 8: it is "
            "damaged, was cut off or is not a safetensors file"
        )
    bound = Bound(MAX_HEADER_BYTES, _MAX_VALUES).within(room)
    if length > bound.nbytes:
        raise HeaderTooLargeError(
            f"{file.path}: the header is {length} bytes long; at most {bound.nbytes} are read: the "
            "memory budget has no room for more; give it more memory"
        )
    where = f"{file.path}: header at byte 8"
    header = parse_object(file.read(8, length), where, most_values=bound.values)
    notes = _checked_notes(header.pop("__metadata__", {}), file)
    start = 8 + length
    tensors = {name: _tensor(name, entry, start, file) for name, entry in header.items()}
    _check_cover(tensors, start, file)
    return tensors, notes


def _checked_notes(notes: Any, file: DiskFile) -> dict[str, str]:
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise JsonTypeError(f"{file.path}: __metadata__ is not an object of strings")
    return notes


def _tensor(name: str, entry: Any, start: int, file: DiskFile) -> TensorInfo:
    where = f"{file.path}: header at byte 8"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise JsonTypeError(
            f"{where}: tensor {shown(name)} is {shown(entry)}, not an object of dtype, shape and "
            "data_offsets"
        )
    block_type = _dtype(name, entry["dtype"], where)
    shape = _whole_numbers(entry["shape"], f"{where}: the shape of tensor {shown(name)}")
    if len(shape) > MAX_RANK:
        raise RankError(
            f"{where}: tensor {shown(name)} has {len(shape)} axes, more than {MAX_RANK}"
        )
    ends = _whole_numbers(entry["data_offsets"], f"{where}: the offsets of tensor {shown(name)}")
    if len(ends) != 2:
        raise JsonTypeError(f"{where}: tensor {shown(name)} has {len(ends)} offsets, not 2")
    nbytes = checked_nbytes(name, shape, block_type, where)
    if ends[1] - ends[0] != nbytes:
        raise TensorSizeError(
            f"{where}: tensor {shown(name)} of shape {shape} and dtype {block_type.name} takes "
            f"{nbytes} bytes, but its offsets are {ends[0]} to {ends[1]}: the file is damaged"
        )
    info = TensorInfo(name, shape, block_type, file.path, start + ends[0], nbytes)
    check_inside(info, file.size)
    return info


def _dtype(name: str, dtype: Any, where: str) -> BlockType:
    if not isinstance(dtype, str):
        raise JsonTypeError(f"{where}: the dtype of tensor {shown(name)} is {shown(dtype)}")
    if dtype not in DTYPES:
        raise DtypeError(
            f"{where}: tensor {shown(name)} has the dtype {shown(dtype)}; readable are "
            + ", ".join(DTYPES)
        )
    return DTYPES[dtype]


def _whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(
        type(number) is int and number >= 0 for number in value
    ):
        raise JsonTypeError(f"{what} are {shown(value)}, not whole numbers of at least 0")
    return tuple(value)


def _check_cover(tensors: dict[str, TensorInfo], start: int, file: DiskFile) -> None:
    """The format demands that the tensors fill the data exactly: nothing hidden, nothing shared."""
    position, before = start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset < position:
            raise TensorOverlapError(
                f"{file.path}: tensor {shown(info.name)} begins at byte {info.offset}, before the "
                f"end of {before} at byte {position}: the file is damaged"
            )
        if info.offset > position:
            raise TensorHoleError(
                f"{file.path}: bytes {position} to {info.offset} between {before} and tensor "
                f"{shown(info.name)} belong to nothing: the file is damaged"
            )
        position, before = info.offset + info.nbytes, f"tensor {shown(info.name)}"
    if position != file.size:
        raise TensorHoleError(
            f"{file.path}: bytes {position} to {file.size} after {before} belong to nothing: the "
            "file is damaged or something was appended to it"
        )
