"""Reading the numbers, strings and arrays of a GGUF header, each checked before it is believed.

Source: the GGUF specification in the ggml project (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, overload

import numpy as np

import strata._native as _native
from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    ArrayLengthError,
    BoolValueError,
    HeaderTooLargeError,
    InvalidTextError,
    NestedArrayError,
    StringLengthError,
    TruncatedError,
    ValueTypeError,
    shown,
)

# The largest vocabularies make headers of some 30 MB. A file that claims more wants our memory.
MAX_HEADER_BYTES = 256 << 20
MAX_NAME_BYTES = 65535

BOOL, STRING, ARRAY = 7, 8, 9
# GGUF value type number -> little-endian numpy dtype.
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# Strings that are unpacked at a time: one by one each costs five times as much.
_TOGETHER = 1024

_u32 = struct.Struct("<I").unpack_from
_u64 = struct.Struct("<Q").unpack_from


class PackedStrings(Sequence[str]):
    """An array of strings as it lies in the file, unpacked as it is looked at: a vocabulary takes
    five times as much as a list. Bytes that are not UTF-8 become lone surrogates
    (`surrogateescape`)."""

    def __init__(self, raw: bytes, count: int) -> None:
        self._raw = raw
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._runs())

    def _runs(self) -> Iterator[list[str]]:
        position = 0
        for done in range(0, self._count, _TOGETHER):
            now = min(_TOGETHER, self._count - done)
            texts, position = _native.unpack_strings(self._raw, position, now)
            yield texts

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"string {index} of {self._count}")
        position = int(self._positions[index % self._count])
        start = position + 8
        end = start + _u64(self._raw, position)[0]
        return self._raw[start:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedStrings):
            return self._raw == other._raw
        return isinstance(other, (list, tuple)) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(self._raw)

    @cached_property
    def _positions(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        """Where each string's length stands; headers are far smaller than 4 GiB."""
        found = np.empty(self._count, np.uint32)
        _native.string_positions(self._raw, found)
        return found


class Metadata(Mapping[str, Any]):
    """Key/values of a GGUF file: numbers and truth values as Python's, text as str, arrays of
    numbers as read-only numpy arrays, arrays of strings as a sequence of str."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Cursor:
    """Walks through a header, loading the file in growing steps and never past its end."""

    def __init__(self, file: DiskFile, room: int | None = None) -> None:
        self.file = file
        # The buffer grows by doubling, and arrays are copied out of it.
        self._most = MAX_HEADER_BYTES if room is None else min(MAX_HEADER_BYTES, room // 4)
        self.position = 0
        self._buffer = bytearray()

    @property
    def remaining(self) -> int:
        return self.file.size - self.position

    def where(self) -> str:
        return f"{self.file.path}: byte {self.position}"

    def _load(self, end: int, what: str) -> None:
        """Have bytes up to `end` in the buffer."""
        if end > self.file.size:
            raise TruncatedError(
                f"{self.where()}: the file ends inside {what}: it was cut off; download or copy it "
                "again"
            )
        if end > self._most:
            why = "this is not a language model"
            if self._most < MAX_HEADER_BYTES:
                why = "the memory budget has no room for more; give it more memory"
            raise HeaderTooLargeError(
                f"{self.where()}: {what} would make the header larger than {self._most} bytes: "
                f"{why}"
            )
        if end > len(self._buffer):
            have = len(self._buffer)
            target = min(self.file.size, max(end, 2 * have, 1 << 18))
            self._buffer += self.file.read(have, target - have)

    def u32(self, what: str) -> int:
        self._load(self.position + 4, what)
        value: int = _u32(self._buffer, self.position)[0]
        self.position += 4
        return value

    def u64(self, what: str) -> int:
        self._load(self.position + 8, what)
        value: int = _u64(self._buffer, self.position)[0]
        self.position += 8
        return value

    def raw(self, nbytes: int, what: str) -> bytes:
        end = self.position + nbytes
        self._load(end, what)
        value = bytes(self._buffer[self.position : end])
        self.position = end
        return value

    def since(self, start: int) -> bytes:
        """The bytes from `start` to here, which were read."""
        return bytes(self._buffer[start : self.position])

    def _string(self, what: str) -> bytes:
        length = self.u64(f"the length of {what}")
        if length > self.remaining:
            raise StringLengthError(
                f"{self.where()}: {what} is said to be {length} bytes long, but {self.remaining} "
                "are left in the file: it is damaged or was cut off"
            )
        return self.raw(length, what)

    def name(self, what: str) -> str:
        """A key or a tensor name: short, not empty, valid UTF-8."""
        at = self.where()
        length = self.u64(f"the length of {what}")
        if length > min(self.remaining, MAX_NAME_BYTES):
            raise StringLengthError(
                f"{at}: {what} is said to be {length} bytes long; at most {MAX_NAME_BYTES} are "
                f"allowed and {self.remaining} are left in the file: it is damaged"
            )
        raw = self.raw(length, what)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidTextError(f"{at}: {what} is {shown(raw)}, not UTF-8 text") from None
        if not text:
            raise InvalidTextError(f"{at}: {what} is empty")
        return text

    def value(self, key: str) -> Any:
        """A metadata value with its type number before it."""
        at = self.where()
        what = f"the value of {shown(key)}"
        kind = self.u32(f"the type of {what}")
        if kind == STRING:
            return self._string(what).decode("utf-8", "surrogateescape")
        if kind == ARRAY:
            return self._array(key)
        return self._numbers(kind, 1, what, at)[0].item()

    def _numbers(self, kind: int, count: int, what: str, at: str) -> np.ndarray[Any, Any]:
        dtype = NUMBERS.get(kind)
        if dtype is None:
            raise ValueTypeError(
                f"{at}: {what} has the type number {kind}, which GGUF does not define: the file is "
                "damaged or newer than this program"
            )
        if kind == BOOL:
            raw = np.frombuffer(self.raw(count, what), dtype=np.uint8)
            if raw.size and raw.max() > 1:
                raise BoolValueError(
                    f"{at}: {what} holds the truth value {raw.max()}; only 0 and 1 are defined"
                )
            return raw.view(np.bool_)
        return np.frombuffer(self.raw(count * dtype.itemsize, what), dtype=dtype)

    def _array(self, key: str) -> np.ndarray[Any, Any] | PackedStrings:
        at = self.where()
        what = f"the array {shown(key)}"
        kind = self.u32(f"the type of {what}")
        if kind == ARRAY:
            raise NestedArrayError(f"{at}: {what} is an array of arrays, which is not supported")
        count = self.u64(f"the length of {what}")
        smallest = 8 if kind == STRING else NUMBERS[kind].itemsize if kind in NUMBERS else 0
        if count * smallest > self.remaining:
            raise ArrayLengthError(
                f"{at}: {what} is said to have {count} elements, but {self.remaining} bytes are "
                "left in the file: it is damaged or was cut off"
            )
        if kind == STRING:
            return self._strings(count, what)
        return self._numbers(kind, count, what, at)

    def _strings(self, count: int, what: str) -> PackedStrings:
        """Step over `count` strings, loading as their lengths are wanted."""
        start = position = self.position
        stepped = 0
        while stepped < count:
            self._check_end(position + 8, f"string {stepped} of {what}")
            self._load(position + 8, what)
            now, position = _native.step_over_strings(self._buffer, position, count - stepped)
            stepped += now
        self._check_end(position, f"the last string of {what}")
        return PackedStrings(self.raw(position - start, what), count)

    def _check_end(self, end: int, what: str) -> None:
        if end > self.file.size:
            raise StringLengthError(
                f"{self.where()}: {what} or the one before it reaches byte {end}, but the file "
                f"ends at byte {self.file.size}: it is damaged or was cut off"
            )
