"""Model files assembled byte by byte, so that tests can also make wrong ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return u64(len(raw) if length is None else length) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + u32(kind) + payload


def string_key(name: str, value: str) -> bytes:
    return key(name, STRING, text(value))


def u32_key(name: str, value: int) -> bytes:
    return key(name, U32, u32(value))


def array_key(name: str, kind: int, payload: bytes, count: int) -> bytes:
    return key(name, ARRAY, u32(kind) + u64(count) + payload)


def tensor(
    name: str | bytes, dims: Sequence[int] = (8,), kind: int = 0, offset: int = 0, rank: int = -1
) -> bytes:
    """A tensor entry; dims in GGUF's order, type 0 is F32."""
    axes = u32(len(dims) if rank < 0 else rank) + b"".join(u64(dim) for dim in dims)
    return text(name) + axes + u32(kind) + u64(offset)


def gguf_parts(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    alignment: int = 32,
) -> list[bytes]:
    """A GGUF file in its structural parts; the counts can lie."""
    parts = [
        magic,
        u32(version),
        u64(len(tensors) if tensor_count is None else tensor_count),
        u64(len(keys) if key_count is None else key_count),
        *keys,
        *tensors,
    ]
    padding = -sum(map(len, parts)) % alignment if data else 0
    return [*parts, bytes(padding), data]


def gguf(*args: Any, **kwargs: Any) -> bytes:
    return b"".join(gguf_parts(*args, **kwargs))


def boundaries(parts: Sequence[bytes]) -> list[int]:
    """Where the parts of a file begin and end, the end of the file excluded."""
    ends = list(accumulate(map(len, parts), initial=0))
    return sorted(set(ends) - {ends[-1]})


def small_gguf() -> list[bytes]:
    """Every kind of metadata and three tensors whose last byte is the last of the file."""
    keys = [
        string_key("general.architecture", "llama"),
        u32_key("general.alignment", 16),
        key("a.u8", U8, b"\x07"),
        key("a.i8", I8, b"\xff"),
        key("a.u16", U16, struct.pack("<H", 65535)),
        key("a.i16", I16, struct.pack("<h", -2)),
        key("a.i32", I32, struct.pack("<i", -3)),
        key("a.f32", F32, struct.pack("<f", 0.5)),
        key("a.bool", BOOL, b"\x01"),
        key("a.u64", U64, u64(2**64 - 1)),
        key("a.i64", I64, struct.pack("<q", -(2**63))),
        key("a.f64", F64, struct.pack("<d", 0.1)),
        array_key("b.tokens", STRING, b"".join(map(text, ["a", "", "é", b"\xff"])), 4),
        array_key("b.scores", F32, struct.pack("<3f", 1, 2, 3), 3),
        array_key("b.flags", BOOL, b"\x00\x01", 2),
        array_key("b.empty", U16, b"", 0),
    ]
    tensors = [
        tensor("first", (8,), 0, 0),
        tensor("second", (32, 2), 2, 32),  # Q4_0: 36 bytes
        tensor("third", (2, 3, 2), 1, 80),  # F16: 24 bytes
    ]
    return gguf_parts(keys, tensors, bytes(range(104)), alignment=16)


def safetensors(
    header: Mapping[str, Any] | str | bytes, data: bytes = b"", length: int | None = None
) -> bytes:
    """A safetensors file; the header may be text that is not JSON, its length may lie."""
    raw = json.dumps(header) if isinstance(header, Mapping) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    return u64(len(raw) if length is None else length) + raw + data


def entry(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def small_safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "first": entry("F32", [2, 2], 0, 16),
        "second": entry("BF16", [3], 16, 22),
        "empty": entry("F16", [0, 4], 22, 22),
    }
    return safetensors(header, bytes(range(22)))


def write_directory(
    directory: Path, files: Mapping[str, bytes | Mapping[str, Any]], config: Any = None
) -> Path:
    """A Hugging Face directory; mappings become JSON, `config` is {} unless given."""
    directory.mkdir(exist_ok=True)
    for name, content in {"config.json": {} if config is None else config, **files}.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / name).write_bytes(raw)
    return directory
