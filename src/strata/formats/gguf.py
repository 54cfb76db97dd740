"""The header of one GGUF file, version 2 or 3: bytes in, a checked index out.

Source: the GGUF specification in the ggml project (docs/gguf.md).
"""

from __future__ import annotations

from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    AlignmentError,
    BigEndianError,
    CountError,
    DuplicateKeyError,
    DuplicateTensorError,
    MagicError,
    RankError,
    TensorTypeError,
    ValueTypeError,
    VersionError,
    ZeroDimensionError,
    shown,
)
from strata.formats.gguf_values import Cursor, Metadata
from strata.formats.tensor_info import TensorInfo, check_disjoint, check_inside, checked_nbytes
from strata.quant import QuantError, by_gguf_id
from strata.records import dataclass

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_RANK = 4
# Real models stay below 100,000 tensors and 200 keys; more would only serve to fill our memory.
MAX_TENSORS = 1 << 18
MAX_KEYS = 1 << 16
# The fewest bytes of an entry: name length, one byte of name, then value or shape, type, offset.
_KEY_BYTES = 8 + 1 + 4 + 1
_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself. `tensors` is in the order of the file."""

    version: int
    alignment: int
    data_offset: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def read_header(file: DiskFile, room: int | None = None) -> GgufHeader:
    """Read and check everything before the tensor data; the data itself is not touched.

    ``room`` are bytes that this may take, None for all that any model needs.

    Raises a FormatError of the kind that fits the fault.
    """
    cursor = Cursor(file, room)
    version = _version(cursor)
    tensor_count = cursor.u64("the number of tensors")
    key_count = cursor.u64("the number of keys")
    _check_count(cursor, key_count, MAX_KEYS, _KEY_BYTES, "keys")
    _check_count(cursor, tensor_count, MAX_TENSORS, _TENSOR_BYTES, "tensors")
    values: dict[str, object] = {}
    alignment = DEFAULT_ALIGNMENT
    for index in range(key_count):
        at = cursor.where()
        key = cursor.name(f"key {index}")
        if key in values:
            raise DuplicateKeyError(f"{at}: the key {shown(key)} appears twice")
        value = values[key] = cursor.value(key)
        if key == "general.alignment":
            alignment = _alignment(value, at)
    relative = [_tensor(cursor, index, alignment) for index in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = {}
    for info in relative:
        absolute = TensorInfo(
            info.name, info.shape, info.type, file.path, data_offset + info.offset, info.nbytes
        )
        check_inside(absolute, file.size)
        if info.name in tensors:
            raise DuplicateTensorError(f"{file.path}: the tensor {shown(info.name)} appears twice")
        tensors[info.name] = absolute
    check_disjoint(tensors.values())
    return GgufHeader(version, alignment, data_offset, Metadata(values), tensors)


@dataclass(frozen=True)
class StoredValue:
    """A metadata value as a file has it: its type number and its bytes, to be carried on."""

    raw: bytes


def stored_values(file: DiskFile) -> dict[str, StoredValue]:
    """All key/values of a file whose header was read, each with its type; checked as `read_header`
    checks them."""
    cursor = Cursor(file)
    _version(cursor)
    cursor.u64("the number of tensors")
    values = {}
    for index in range(cursor.u64("the number of keys")):
        key = cursor.name(f"key {index}")
        start = cursor.position
        cursor.value(key)
        values[key] = StoredValue(cursor.since(start))
    return values


def _version(cursor: Cursor) -> int:
    magic = cursor.raw(4, "the first four bytes")
    if magic != MAGIC:
        raise MagicError(
            f"{cursor.file.path} begins with {magic!r} and not with {MAGIC!r}: it is not a GGUF "
            "file"
        )
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise BigEndianError(
            f"{cursor.file.path} was written for big-endian machines: convert it to little-endian"
        )
    if version not in (2, 3):
        raise VersionError(
            f"{cursor.file.path} is GGUF version {version}; versions 2 and 3 can be read: "
            + ("convert it again" if version < 2 else "a newer program is needed")
        )
    return version


def _check_count(cursor: Cursor, count: int, most: int, nbytes: int, what: str) -> None:
    if count > most or count * nbytes > cursor.remaining:
        raise CountError(
            f"{cursor.where()}: the header announces {count} {what}; at most {most} are allowed "
            f"and {cursor.remaining} bytes are left in the file: it is damaged or was cut off"
        )


def _alignment(value: object, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueTypeError(f"{at}: general.alignment is not a whole number")
    if value <= 0 or value & (value - 1) or value >= 1 << 32:
        raise AlignmentError(f"{at}: general.alignment is {value}, not a power of two")
    return value


def _tensor(cursor: Cursor, index: int, alignment: int) -> TensorInfo:
    """One tensor entry; its offset is still relative to the data."""
    at = cursor.where()
    name = cursor.name(f"the name of tensor {index}")
    what = f"the description of tensor {shown(name)}"
    rank = cursor.u32(what)
    if rank > MAX_RANK:
        raise RankError(
            f"{at}: tensor {shown(name)} has {rank} axes; GGUF allows {MAX_RANK}: the file is "
            "damaged"
        )
    dims = tuple(cursor.u64(what) for _ in range(rank))
    if 0 in dims:
        raise ZeroDimensionError(
            f"{at}: tensor {shown(name)} has dimensions {dims}, one of them zero: convert the "
            "model again"
        )
    number = cursor.u32(what)
    try:
        block_type = by_gguf_id(number)
    except QuantError:
        raise TensorTypeError(
            f"{at}: tensor {shown(name)} has the type number {number}, which is not known: the "
            "file is damaged, or its type was withdrawn or is newer than this program"
        ) from None
    offset = cursor.u64(what)
    if offset % alignment:
        raise AlignmentError(
            f"{at}: tensor {shown(name)} is at data offset {offset}, not a multiple of the "
            f"alignment {alignment}: the file is damaged"
        )
    shape = dims[::-1]
    nbytes = checked_nbytes(name, shape, block_type, at)
    return TensorInfo(name, shape, block_type, cursor.file.path, offset, nbytes)
