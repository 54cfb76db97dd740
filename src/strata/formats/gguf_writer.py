"""Writing GGUF files, version 3: the header first, then tensor by tensor from iterators, so that a
file may be larger than memory.

Source: the GGUF specification in the ggml project (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import WriteError, shown
from strata.formats.gguf import DEFAULT_ALIGNMENT, MAGIC, MAX_RANK, StoredValue
from strata.formats.gguf_values import ARRAY, BOOL, NUMBERS, STRING
from strata.formats.writing import (
    TensorSource,
    Written,
    new_file,
    refuse_duplicates,
    resumed_file,
    write_tensor,
)

__all__ = ["TensorSource", "write_gguf"]

_VERSION = 3
_KINDS = {dtype: kind for kind, dtype in NUMBERS.items()}
_INT32, _UINT32 = np.dtype("<i4"), np.dtype("<u4")


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorSource],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    written: Written | None = None,
    keep_partial: bool = False,
    job: str | None = None,
) -> None:
    """Write a GGUF file; it appears under its name only when it is complete.

    Metadata values: numpy scalars and one-dimensional arrays keep their type; bool, int (the first
    of uint32, int32, uint64, int64 that fits), float (float32), str, and lists of str, bool, int
    (int32, or int64) or float (float32); a StoredValue is carried as it is. Text may hold
    surrogates of undecodable bytes. Raises
    DiskFullError before writing if there is no room, WriteError for anything GGUF cannot hold.
    `written` is told of progress; `keep_partial` leaves an interrupted file as `path`.partial.
    With a ``job``, which names everything that the bytes depend on, it is left, and the next call
    with the same one goes on behind the last tensor that is whole.
    """
    path = Path(path)
    header, sizes = _header(metadata, tensors, alignment)
    total = len(header) + sum(_padded(size, alignment) for size in sizes)
    if job is not None:
        digest = sha256(job.encode() + header).hexdigest()
        with resumed_file(path, total, digest) as file:
            done = file.done
            if not done:
                file.write(header)
            for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
                if number < done:
                    if written is not None:
                        written(size)
                    continue
                write_tensor(file, tensor, written)
                file.write(bytes(_padded(size, alignment) - size))
                file.mark(number + 1)
        return
    with new_file(path, total, keep_partial=keep_partial) as out:
        out.write(header)
        for tensor, size in zip(tensors, sizes, strict=True):
            write_tensor(out, tensor, written)
            out.write(bytes(_padded(size, alignment) - size))


def gguf_header(metadata: Mapping[str, Any], tensors: Sequence[TensorSource]) -> bytes:
    """All bytes before the tensors' own."""
    return _header(metadata, tensors, DEFAULT_ALIGNMENT)[0]


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _header(
    metadata: Mapping[str, Any], tensors: Sequence[TensorSource], alignment: int
) -> tuple[bytes, list[int]]:
    """All bytes before the tensor data, padding included, and the size of each tensor."""
    if alignment <= 0 or alignment & (alignment - 1):
        raise WriteError(f"the alignment {alignment} is not a power of two")
    values = dict(metadata)
    if alignment != DEFAULT_ALIGNMENT:
        values["general.alignment"] = np.uint32(alignment)
    refuse_duplicates(tensors)
    out = bytearray(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(values)))
    for key, value in values.items():
        out += _text(key) + _value(key, value)
    sizes = []
    offset = 0
    for tensor in tensors:
        if tensor.type.gguf_id is None:
            raise WriteError(
                f"tensor {shown(tensor.name)}: GGUF has no type {tensor.type.name}; decode it first"
            )
        if len(tensor.shape) > MAX_RANK or 0 in tensor.shape:
            raise WriteError(
                f"tensor {shown(tensor.name)} has the shape {tensor.shape}; GGUF allows up to "
                f"{MAX_RANK} axes, none of length zero"
            )
        dims = tensor.shape[::-1]
        out += _text(tensor.name)
        out += struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", tensor.type.gguf_id, offset)
        sizes.append(tensor.nbytes)
        offset += _padded(sizes[-1], alignment)
    out += bytes(_padded(len(out), alignment) - len(out))
    return bytes(out), sizes


def _text(text: str) -> bytes:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WriteError(f"{shown(text)} is not UTF-8, and no text of a GGUF file") from None
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """The type number and the bytes of a metadata value."""
    if isinstance(value, StoredValue):
        return value.raw
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if not value:
            raise WriteError(f"{key}: an empty list has no type; give an empty numpy array")
        if all(isinstance(item, str) for item in value):
            head = struct.pack("<IIQ", ARRAY, STRING, len(value))
            return head + b"".join(_text(item) for item in value)
        return _array(key, _list_as_array(key, value))
    if isinstance(value, np.ndarray):
        return _array(key, value)
    scalar = _scalar(key, value)
    return struct.pack("<I", _kind(key, scalar.dtype)) + scalar.tobytes()


def _array(key: str, array: NDArray[Any]) -> bytes:
    if array.ndim != 1:
        raise WriteError(f"{key}: an array of {array.ndim} axes; GGUF metadata has only one")
    return struct.pack("<IIQ", ARRAY, _kind(key, array.dtype), len(array)) + array.tobytes()


def _kind(key: str, dtype: np.dtype[Any]) -> int:
    if dtype not in _KINDS:
        raise WriteError(f"{key}: GGUF metadata cannot hold {dtype}")
    return _KINDS[dtype]


def _list_as_array(key: str, items: Sequence[Any]) -> NDArray[Any]:
    kinds = {type(item) for item in items}
    if kinds == {bool}:
        return np.array(items, dtype=NUMBERS[BOOL])
    if kinds == {int}:
        fits = all(-(1 << 31) <= item < 1 << 31 for item in items)
        return np.array(items, dtype=_INT32 if fits else np.int64)
    if kinds <= {int, float}:
        return np.array(items, dtype=np.float32)
    raise WriteError(f"{key}: a list of {sorted(kind.__name__ for kind in kinds)}")


def _scalar(key: str, value: Any) -> NDArray[Any]:
    if isinstance(value, (np.generic, bool)):
        return np.array(value)
    if isinstance(value, float):
        return np.array(value, dtype=np.float32)
    if isinstance(value, int):
        for dtype in map(np.dtype, ("u4", "i4", "u8", "i8")):
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return np.array(value, dtype=dtype)
    raise WriteError(f"{key}: GGUF metadata cannot hold {shown(value)}")
