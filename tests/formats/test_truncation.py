"""A file cut anywhere is refused with a named error, never read as if it were whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from strata.formats import FormatError, open_model
from support.model_bytes import (
    STRING,
    array_key,
    boundaries,
    entry,
    gguf_parts,
    key,
    safetensors,
    small_gguf,
    small_safetensors,
    string_key,
    tensor,
    text,
    u32_key,
    write_directory,
)


def assert_refused(path: Path, raw: bytes, cuts: Iterable[int], opened: Path) -> None:
    """`path`, one of the files of the model `opened`, is cut to each of the lengths."""
    for length in cuts:
        path.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            open_model(opened).close()
    path.write_bytes(raw)
    open_model(opened).close()


def test_a_small_gguf_cut_at_every_byte(tmp_path: Path) -> None:
    raw = b"".join(small_gguf())
    path = tmp_path / "m.gguf"
    assert_refused(path, raw, range(len(raw)), path)


def test_a_larger_gguf_cut_at_every_border_and_around(tmp_path: Path) -> None:
    """Larger than what the reader loads first, so that cuts fall before and after its steps."""
    words = [text(f"word {number}") for number in range(20_000)]
    keys = [
        string_key("general.architecture", "llama"),
        array_key("tokenizer.ggml.tokens", STRING, b"".join(words), len(words)),
        key("tokenizer.chat_template", STRING, text("{{ x }}" * 50_000)),
    ]
    tensors = [tensor(f"t{number}", (64,), 0, 256 * number) for number in range(20)]
    parts = gguf_parts(keys, tensors, bytes(256 * 20))
    raw = b"".join(parts)
    assert len(raw) > 600_000
    cuts = {cut + near for cut in boundaries(parts) for near in (-1, 0, 1)}
    cuts |= {(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 19}
    path = tmp_path / "m.gguf"
    assert_refused(path, raw, (cut for cut in sorted(cuts) if 0 <= cut < len(raw)), path)


def test_parts_of_a_split_model_cut_at_every_byte(tmp_path: Path) -> None:
    raw = []
    for number in range(2):
        keys = [u32_key("split.no", number), u32_key("split.count", 2)]
        raw.append(b"".join(gguf_parts(keys, [tensor(f"t{number}")], bytes(32))))
    paths = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path, content in zip(paths, raw, strict=True):
        path.write_bytes(content)
    for path, content in zip(paths, raw, strict=True):
        assert_refused(path, content, range(len(content)), paths[0])


def test_a_small_safetensors_cut_at_every_byte(tmp_path: Path) -> None:
    raw = small_safetensors()
    directory = write_directory(tmp_path / "m", {})
    assert_refused(directory / "model.safetensors", raw, range(len(raw)), directory)


def test_every_file_of_a_sharded_directory_cut_at_every_byte(tmp_path: Path) -> None:
    shards = {
        f"{name}.safetensors": safetensors({name: entry("F32", [2], 0, 8)}, bytes(8))
        for name in "ab"
    }
    index = {"weight_map": {name[0]: name for name in shards}}
    files = {"model.safetensors.index.json": index, **shards}
    directory = write_directory(tmp_path / "m", files, {"model_type": "llama"})
    for path in list(directory.iterdir()):
        raw = path.read_bytes()
        assert_refused(path, raw, range(len(raw)), directory)
