"""Malformed GGUF files and split models, with the one error that each must give."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from strata.formats import errors
from support.attack import case
from support.model_bytes import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    array_key,
    gguf,
    key,
    string_key,
    tensor,
    text,
    u32_key,
    u64,
)


def gguf_case(name: str, error: type[errors.FormatError], raw: bytes, pad_to: int = 0) -> None:
    """One GGUF file; `pad_to` makes it a sparse file of that size."""

    def build(directory: Path) -> Path:
        path = directory / "model.gguf"
        path.write_bytes(raw)
        if pad_to:
            os.truncate(path, pad_to)
        return path

    case(f"gguf: {name}", error, build)


def parts_case(
    name: str, error: type[errors.FormatError], parts: Mapping[str, bytes], opened: str
) -> None:
    def build(directory: Path) -> Path:
        for part, raw in parts.items():
            (directory / part).write_bytes(raw)
        return directory / opened

    case(f"split: {name}", error, build)


# --- GGUF: the fixed part ---------------------------------------------------------------------

EIGHT = bytes(32)  # the data of one F32 tensor of 8

gguf_case("empty file", errors.TruncatedError, b"")
gguf_case("wrong magic", errors.MagicError, gguf(magic=b"GGML"))
gguf_case("big-endian", errors.BigEndianError, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
gguf_case("version 0", errors.VersionError, gguf(version=0))
gguf_case("version 1", errors.VersionError, gguf(version=1))
gguf_case("version of the future", errors.VersionError, gguf(version=4))
gguf_case("2^63 tensors", errors.CountError, gguf(tensor_count=2**63))
gguf_case("2^64 - 1 keys", errors.CountError, gguf(key_count=2**64 - 1))
gguf_case("counts whose product wraps to 0", errors.CountError, gguf(tensor_count=2**61))
gguf_case("more tensors than bytes", errors.CountError, gguf(tensor_count=100))
gguf_case("a key is missing", errors.CountError, gguf(key_count=1))
gguf_case(
    "more tensors than any model has", errors.CountError, gguf(tensor_count=2**20), pad_to=2**30
)
gguf_case(
    "a tensor is missing", errors.TruncatedError, gguf([], [tensor("x" * 40)], tensor_count=2)
)

# --- GGUF: metadata ---------------------------------------------------------------------------

PAD = string_key("pad", "x" * 64)

gguf_case("key length 2^63", errors.StringLengthError, gguf([text("a", 2**63) + PAD]))
gguf_case("key length 2^64 - 1", errors.StringLengthError, gguf([text("a", 2**64 - 1) + PAD]))
gguf_case("key of 65,536 bytes", errors.StringLengthError, gguf([string_key("k" * 65536, "")]))
gguf_case("empty key", errors.InvalidTextError, gguf([string_key("", "x")]))
gguf_case("key that is not UTF-8", errors.InvalidTextError, gguf([key(b"\xff", U8, b"\0")]))
gguf_case(
    "string longer than the file",
    errors.StringLengthError,
    gguf([key("a", STRING, text("x", 1000))]),
)
gguf_case(
    "string length 2^64 - 1", errors.StringLengthError, gguf([key("a", STRING, u64(2**64 - 1))])
)
gguf_case("unknown value type", errors.ValueTypeError, gguf([key("a", 13, u64(0))]))
gguf_case("value type 2^32 - 1", errors.ValueTypeError, gguf([key("a", 2**32 - 1, u64(0))]))
gguf_case("unknown array type", errors.ValueTypeError, gguf([array_key("a", 77, b"", 1)]))
gguf_case(
    "array whose size wraps to 8 bytes",
    errors.ArrayLengthError,
    gguf([array_key("a", 10, u64(0), 2**61 + 1)]),
)
gguf_case("array of 2^63 bytes", errors.ArrayLengthError, gguf([array_key("a", U8, b"", 2**63)]))
gguf_case(
    "array one element too long", errors.ArrayLengthError, gguf([array_key("a", I32, b"\0" * 8, 3)])
)
gguf_case(
    "array of 2^60 strings", errors.ArrayLengthError, gguf([array_key("a", STRING, b"", 2**60)])
)
gguf_case(
    "last string of an array too long",
    errors.StringLengthError,
    gguf([array_key("a", STRING, text("x") + text("y", 2), 2)]),
)
gguf_case(
    "string of 2^63 bytes inside an array",
    errors.StringLengthError,
    gguf([array_key("a", STRING, text("x", 2**63) + text("y") * 9, 10)]),
)
gguf_case(
    "array of arrays",
    errors.NestedArrayError,
    gguf([array_key("a", ARRAY, struct.pack("<IQ", U8, 0) * 5, 5)]),
)
gguf_case(
    "arrays nested a thousand deep",
    errors.NestedArrayError,
    gguf([array_key("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000, 1)]),
)
gguf_case("truth value 2", errors.BoolValueError, gguf([key("a", BOOL, b"\x02")]))
gguf_case(
    "truth value 255 in an array", errors.BoolValueError, gguf([array_key("a", BOOL, b"\0\xff", 2)])
)
gguf_case("the same key twice", errors.DuplicateKeyError, gguf([u32_key("a", 1), u32_key("a", 1)]))
gguf_case(
    "header of 300 MB",
    errors.HeaderTooLargeError,
    gguf([array_key("a", U8, b"", 300 << 20)]),
    pad_to=301 << 20,
)
gguf_case("alignment 0", errors.AlignmentError, gguf([u32_key("general.alignment", 0)]))
gguf_case("alignment 24", errors.AlignmentError, gguf([u32_key("general.alignment", 24)]))
gguf_case("alignment is text", errors.ValueTypeError, gguf([string_key("general.alignment", "32")]))
gguf_case(
    "alignment is a fraction",
    errors.ValueTypeError,
    gguf([key("general.alignment", F32, struct.pack("<f", 32))]),
)
gguf_case(
    "alignment puts the data past the end",
    errors.TensorOutOfFileError,
    gguf([u32_key("general.alignment", 2**31)], [tensor("x")], EIGHT),
)

# --- GGUF: tensors ----------------------------------------------------------------------------

gguf_case("empty tensor name", errors.InvalidTextError, gguf([], [tensor("")], EIGHT))
gguf_case("tensor name not UTF-8", errors.InvalidTextError, gguf([], [tensor(b"\xc0")], EIGHT))
gguf_case(
    "tensor name of 2^63 bytes", errors.StringLengthError, gguf([], [text("x", 2**63)], EIGHT)
)
gguf_case(
    "the same tensor twice",
    errors.DuplicateTensorError,
    gguf([], [tensor("x"), tensor("x", offset=32)], EIGHT * 2),
)
gguf_case("five axes", errors.RankError, gguf([], [tensor("x", (2, 2, 2, 1, 1))], EIGHT))
gguf_case("2^32 - 1 axes", errors.RankError, gguf([], [tensor("x", (8,), rank=2**32 - 1)], EIGHT))
gguf_case("axis of length zero", errors.ZeroDimensionError, gguf([], [tensor("x", (8, 0))], EIGHT))
gguf_case(
    "2^64 elements wrap to 0",
    errors.SizeOverflowError,
    gguf([], [tensor("x", (2**32, 2**32))], EIGHT),
)
gguf_case("axis of 2^63", errors.SizeOverflowError, gguf([], [tensor("x", (2**63,))], EIGHT))
gguf_case(
    "2^64 bytes wrap to 0", errors.SizeOverflowError, gguf([], [tensor("x", (2**62,))], EIGHT)
)
gguf_case("withdrawn tensor type", errors.TensorTypeError, gguf([], [tensor("x", kind=4)], EIGHT))
gguf_case(
    "tensor type 2^32 - 1", errors.TensorTypeError, gguf([], [tensor("x", kind=2**32 - 1)], EIGHT)
)
gguf_case(
    "row that is not whole blocks", errors.BlockShapeError, gguf([], [tensor("x", (33,), 2)], EIGHT)
)
gguf_case(
    "blocks of one axis in a column",
    errors.BlockShapeError,
    gguf([], [tensor("x", (1, 32), 2)], EIGHT),
)
gguf_case("offset between alignments", errors.AlignmentError, gguf([], [tensor("x", offset=4)]))
gguf_case(
    "offset past the end", errors.TensorOutOfFileError, gguf([], [tensor("x", offset=3200)], EIGHT)
)
gguf_case(
    "offset near 2^64",
    errors.TensorOutOfFileError,
    gguf([], [tensor("x", offset=2**64 - 32)], EIGHT),
)
gguf_case("last byte missing", errors.TensorOutOfFileError, gguf([], [tensor("x")], EIGHT)[:-1])
gguf_case(
    "tensor far larger than the file",
    errors.TensorOutOfFileError,
    gguf([], [tensor("x", (2**20, 2**20))], EIGHT),
)
gguf_case(
    "two tensors in one place",
    errors.TensorOverlapError,
    gguf([], [tensor("x"), tensor("y")], EIGHT),
)
gguf_case(
    "a tensor inside another",
    errors.TensorOverlapError,
    gguf([], [tensor("x", (64,)), tensor("y", offset=96)], bytes(256)),
)

# --- GGUF: split models -----------------------------------------------------------------------


def part(number: int, count: int, name: str, total: int = 2) -> bytes:
    keys = [
        u32_key("split.no", number),
        u32_key("split.count", count),
        key("split.tensors.count", I32, struct.pack("<i", total)),
    ]
    return gguf(keys, [tensor(name)], EIGHT)


ONE, TWO = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"
PARTS = {ONE: part(0, 2, "x"), TWO: part(1, 2, "y")}

parts_case("second part missing", errors.SplitPartMissingError, {ONE: PARTS[ONE]}, ONE)
parts_case("first part missing", errors.SplitPartMissingError, {TWO: PARTS[TWO]}, TWO)
parts_case("part renamed", errors.SplitNameError, {"m.gguf": PARTS[ONE]}, "m.gguf")
parts_case(
    "name says three parts",
    errors.SplitMismatchError,
    {"m-00001-of-00003.gguf": PARTS[ONE]},
    "m-00001-of-00003.gguf",
)
parts_case("parts exchanged", errors.SplitMismatchError, {ONE: PARTS[TWO], TWO: PARTS[ONE]}, ONE)
parts_case(
    "part of another split",
    errors.SplitMismatchError,
    {ONE: PARTS[ONE], TWO: part(1, 3, "y")},
    ONE,
)
parts_case(
    "second part is a whole model",
    errors.SplitMismatchError,
    {ONE: PARTS[ONE], TWO: gguf([], [tensor("y")], EIGHT)},
    ONE,
)
parts_case(
    "the same tensor in two parts",
    errors.DuplicateTensorError,
    {ONE: PARTS[ONE], TWO: part(1, 2, "x")},
    ONE,
)
parts_case(
    "a tensor missing from the parts",
    errors.SplitMismatchError,
    {ONE: part(0, 2, "x", 3), TWO: part(1, 2, "y", 3)},
    TWO,
)
parts_case(
    "count is text",
    errors.SplitMismatchError,
    {ONE: gguf([string_key("split.count", "2")])},
    ONE,
)
parts_case(
    "count is negative",
    errors.SplitMismatchError,
    {ONE: gguf([key("split.count", I32, struct.pack("<i", -2))])},
    ONE,
)
parts_case("second part cut off", errors.TensorOutOfFileError, {**PARTS, TWO: PARTS[TWO][:-1]}, ONE)
