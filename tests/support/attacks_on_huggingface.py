"""Malformed safetensors files and Hugging Face directories, with the error that each must give."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.formats import errors
from support.attack import case
from support.model_bytes import entry, safetensors, write_directory

INDEX = "model.safetensors.index.json"
EIGHT = bytes(32)  # the data of one F32 tensor of 8


def weights_case(name: str, error: type[errors.FormatError], raw: bytes, pad_to: int = 0) -> None:
    """One safetensors file in a directory."""

    def build(directory: Path) -> Path:
        write_directory(directory, {"model.safetensors": raw})
        if pad_to:
            os.truncate(directory / "model.safetensors", pad_to)
        return directory

    case(f"safetensors: {name}", error, build)


def directory_case(
    name: str,
    error: type[errors.FormatError],
    files: Mapping[str, bytes | Mapping[str, Any]],
    config: Any = None,
) -> None:
    case(f"directory: {name}", error, lambda path: write_directory(path, files, config))


# --- safetensors ------------------------------------------------------------------------------

X = {"x": entry("F32", [8], 0, 32)}

weights_case("empty file", errors.TruncatedError, b"")
weights_case("header length 2^63", errors.HeaderLengthError, safetensors(X, EIGHT, 2**63))
weights_case("header longer than the file", errors.HeaderLengthError, safetensors(X, EIGHT, 999))
weights_case(
    "header of 200 MB", errors.HeaderLengthError, safetensors(X, EIGHT, 200 << 20), pad_to=201 << 20
)
weights_case("header length 0", errors.JsonSyntaxError, safetensors("", EIGHT))
weights_case("header is not JSON", errors.JsonSyntaxError, safetensors("{x: 1}"))
weights_case("header cut inside JSON", errors.JsonSyntaxError, safetensors(X, EIGHT, 20))
weights_case("header not UTF-8", errors.JsonSyntaxError, safetensors(b'{"\xff": 1}'))
weights_case("header is a list", errors.JsonTypeError, safetensors("[]"))
weights_case("header nested deeply", errors.JsonDepthError, safetensors('{"a":' * 50_000))
weights_case("lists nested deeply", errors.JsonDepthError, safetensors("[" * 500_000))
weights_case(
    "the same tensor twice",
    errors.JsonDuplicateKeyError,
    safetensors(f'{{"x": {json.dumps(X["x"])}, "x": {json.dumps(X["x"])}}}', EIGHT),
)
weights_case(
    "the same field twice",
    errors.JsonDuplicateKeyError,
    safetensors('{"x": {"dtype": "F32", "dtype": "I8", "shape": [8], "data_offsets": [0, 32]}}'),
)


def with_shape(shape: str) -> bytes:
    return safetensors(
        f'{{"x": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 32]}}}}', EIGHT
    )


weights_case("NaN in a shape", errors.JsonNumberError, with_shape("[NaN]"))
weights_case("infinity in a shape", errors.JsonNumberError, with_shape("[-Infinity]"))
weights_case("number that overflows", errors.JsonNumberError, with_shape("[1e999]"))
weights_case("number of 100,000 digits", errors.JsonNumberError, with_shape(f"[{'9' * 100_000}]"))
weights_case("negative dimension", errors.JsonTypeError, with_shape("[-8]"))
weights_case("fraction as dimension", errors.JsonTypeError, with_shape("[8.0]"))
weights_case("truth as dimension", errors.JsonTypeError, with_shape("[8, true]"))
weights_case("shape is a number", errors.JsonTypeError, with_shape("8"))
weights_case("shape is null", errors.JsonTypeError, with_shape("null"))
weights_case("2^80 elements", errors.SizeOverflowError, with_shape(f"[{2**40}, {2**40}]"))
weights_case("2^64 bytes", errors.SizeOverflowError, with_shape(f"[{2**62}]"))
weights_case("nine axes", errors.RankError, with_shape("[8, 1, 1, 1, 1, 1, 1, 1, 1]"))
weights_case("shape and bytes differ", errors.TensorSizeError, with_shape("[7]"))
weights_case("tensor is a string", errors.JsonTypeError, safetensors({"x": "F32"}))
weights_case("dtype missing", errors.JsonTypeError, safetensors({"x": {"shape": [8]}}))
weights_case(
    "field too many", errors.JsonTypeError, safetensors({"x": {**X["x"], "stride": [1]}}, EIGHT)
)
weights_case("unknown dtype", errors.DtypeError, safetensors({"x": entry("F4", [8], 0, 32)}, EIGHT))
weights_case(
    "dtype is a number", errors.JsonTypeError, safetensors({"x": entry(1, [8], 0, 32)}, EIGHT)
)
weights_case(
    "dtype is a list", errors.JsonTypeError, safetensors({"x": entry([], [8], 0, 32)}, EIGHT)
)
weights_case(
    "three offsets",
    errors.JsonTypeError,
    safetensors({"x": {**X["x"], "data_offsets": [0, 16, 32]}}, EIGHT),
)
weights_case(
    "offsets reversed",
    errors.TensorSizeError,
    safetensors({"x": entry("F32", [8], 32, 0)}, EIGHT),
)
weights_case(
    "offset past the end",
    errors.TensorOutOfFileError,
    safetensors({"x": entry("F32", [8], 2**62, 2**62 + 32)}, EIGHT),
)
weights_case("last byte missing", errors.TensorOutOfFileError, safetensors(X, EIGHT[:-1]))
weights_case(
    "hole before the first tensor",
    errors.TensorHoleError,
    safetensors({"x": entry("F32", [8], 4, 36)}, bytes(36)),
)
weights_case(
    "hole between tensors",
    errors.TensorHoleError,
    safetensors({**X, "y": entry("F32", [1], 36, 40)}, bytes(40)),
)
weights_case("bytes after the last tensor", errors.TensorHoleError, safetensors(X, EIGHT + b"\0"))
weights_case("data without tensors", errors.TensorHoleError, safetensors({}, EIGHT))
weights_case(
    "tensors overlap",
    errors.TensorOverlapError,
    safetensors({**X, "y": entry("F32", [2], 28, 36)}, bytes(36)),
)
weights_case(
    "metadata holds a number",
    errors.JsonTypeError,
    safetensors({"__metadata__": {"a": 1}, **X}, EIGHT),
)
weights_case(
    "metadata is a list", errors.JsonTypeError, safetensors({"__metadata__": [], **X}, EIGHT)
)

# --- Hugging Face directories -----------------------------------------------------------------

WHOLE = safetensors(X, EIGHT)
OTHER = safetensors({"y": entry("F32", [8], 0, 32)}, EIGHT)
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index_case(
    name: str, error: type[errors.FormatError], weight_map: Any, files: Mapping[str, bytes]
) -> None:
    directory_case(name, error, {INDEX: {"weight_map": weight_map}, **files})


def bare(directory: Path) -> Path:
    (directory / "model.safetensors").write_bytes(WHOLE)
    return directory


def pipe(directory: Path) -> Path:
    os.mkfifo(directory / "model.gguf")
    return directory / "model.gguf"


def weights_file(directory: Path) -> Path:
    return bare(directory) / "model.safetensors"


case("path: nothing there", errors.FileMissingError, lambda path: path / "absent.gguf")
case("path: below a file", errors.FileMissingError, lambda path: weights_file(path) / "a.gguf")
case("path: a pipe", errors.NotAFileError, pipe)
case("path: zero byte in the name", errors.FileUnreadableError, lambda path: path / "a\0b.gguf")
case("path: a name of 300 characters", errors.FileUnreadableError, lambda path: path / ("a" * 300))
case("path: a weight file of a directory", errors.UnknownFormatError, weights_file)
case("directory: no config", errors.ConfigMissingError, bare)

directory_case("config is not JSON", errors.JsonSyntaxError, {"model.safetensors": WHOLE}, b"{")
directory_case("config is empty", errors.JsonSyntaxError, {"model.safetensors": WHOLE}, b"")
directory_case("config is a list", errors.JsonTypeError, {"model.safetensors": WHOLE}, b"[]")
directory_case(
    "config holds NaN", errors.JsonNumberError, {"model.safetensors": WHOLE}, b'{"a":NaN}'
)
directory_case(
    "config has a key twice",
    errors.JsonDuplicateKeyError,
    {"model.safetensors": WHOLE},
    b'{"a": {"b": 1, "b": 2}}',
)
directory_case("no weights", errors.WeightsMissingError, {})
directory_case("two weight files, no index", errors.WeightsAmbiguousError, {A: WHOLE, B: OTHER})
directory_case("index is not JSON", errors.JsonSyntaxError, {INDEX: b"weight_map", A: WHOLE})
directory_case("index without weight_map", errors.JsonTypeError, {INDEX: {}, A: WHOLE})
index_case("weight_map is a list", errors.JsonTypeError, ["x"], {A: WHOLE})
index_case("weight_map is empty", errors.WeightsMissingError, {}, {A: WHOLE})
index_case("shard is a number", errors.JsonTypeError, {"x": 1}, {A: WHOLE})
index_case("shard leads upwards", errors.IndexPathError, {"x": "../" + A}, {A: WHOLE})
index_case("shard is absolute", errors.IndexPathError, {"x": "/etc/a.safetensors"}, {A: WHOLE})
index_case("shard leads upwards on Windows", errors.IndexPathError, {"x": "..\\" + A}, {A: WHOLE})
index_case("shard in a directory below", errors.IndexPathError, {"x": "sub/" + A}, {A: WHOLE})
index_case("shard with a zero byte", errors.IndexPathError, {"x": "a\0.safetensors"}, {A: WHOLE})
index_case("shard with a line break", errors.IndexPathError, {"x": "a\n.safetensors"}, {A: WHOLE})
index_case("shard with half a character", errors.IndexPathError, {"x": "\ud800.safetensors"}, {})
index_case(
    "shard name of 5,000 characters",
    errors.IndexPathError,
    {"x": "a" * 5000 + ".safetensors"},
    {A: WHOLE},
)
index_case("shard is not safetensors", errors.IndexPathError, {"x": "config.json"}, {A: WHOLE})
index_case("shard missing", errors.ShardMissingError, {"x": A, "y": B}, {A: WHOLE})
index_case("tensor missing", errors.IndexTensorError, {"x": A, "z": A}, {A: WHOLE})
index_case(
    "tensor in another shard", errors.IndexTensorError, {"x": B, "y": A}, {A: WHOLE, B: OTHER}
)
index_case(
    "tensor not in the index",
    errors.IndexTensorError,
    {"x": A},
    {A: safetensors({**X, "y": entry("F32", [0], 32, 32)}, EIGHT)},
)
index_case(
    "the same tensor in two shards",
    errors.DuplicateTensorError,
    {"x": A, "y": B},
    {A: WHOLE, B: WHOLE},
)

# --- 8-bit weights ----------------------------------------------------------------------------


def scaled(
    shape: list[int], scale: list[int], dtype: str = "F32", suffix: str = "_scale_inv"
) -> dict[str, Any]:
    """An 8-bit weight and its scale; returns the file for a directory."""
    size, width = 1, 4 if dtype == "F32" else 1
    for length in shape:
        size *= length
    count = width
    for length in scale:
        count *= length
    header = {
        "w": entry("F8_E4M3", shape, 0, size),
        "w" + suffix: entry(dtype, scale, size, size + count),
    }
    return {"model.safetensors": safetensors(header, bytes(size + count))}


directory_case("8-bit scale of another shape", errors.Fp8ScaleError, scaled([4, 256], [3, 2]))
directory_case("8-bit scale of whole numbers", errors.Fp8ScaleError, scaled([4, 128], [1], "I8"))
directory_case("8-bit row of 100", errors.Fp8ScaleError, scaled([4, 100], [1]))
directory_case("8-bit weight of three axes", errors.Fp8ScaleError, scaled([2, 4, 128], [1]))
directory_case("8-bit weight of no rows", errors.Fp8ScaleError, scaled([0, 128], [1]))
directory_case(
    "8-bit blocks of 64",
    errors.Fp8ScaleError,
    scaled([4, 256], [1, 2]),
    {"quantization_config": {"weight_block_size": [64, 64]}},
)
directory_case(
    "8-bit weight with two scales",
    errors.Fp8ScaleError,
    {
        "model.safetensors": safetensors(
            {
                "w": entry("F8_E4M3", [1, 128], 0, 128),
                "w_scale": entry("F32", [1], 128, 132),
                "w_scale_inv": entry("F32", [1], 132, 136),
            },
            bytes(136),
        )
    },
)
