"""Vocabularies and tokenizer files that were made to harm: each ends in an error that says why."""

from __future__ import annotations

import base64
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.errors import StrataError
from strata.formats import FormatError
from strata.formats.gguf_values import PackedStrings
from strata.formats.side_files import BOUNDS, TEMPLATE
from strata.text import TokenizerError, tokenizer_from_directory, tokenizer_from_gguf
from strata.text.bpe import BYTE_LETTERS
from support.character_maps import character_map
from support.small_vocabularies import metadata, sentencepiece

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}


def directory(path: Path, **changed: Any) -> Path:
    """A model directory whose tokenizer.json has these parts."""
    parts = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": BPE,
        **changed,
    }
    (path / "tokenizer.json").write_text(json.dumps(parts))
    return path


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


PRECOMPILED = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(bytes([255] * 4 + [0] * 9)).decode(),
}
LONG_REPLACEMENT = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(character_map({"a": "b" * 300})).decode(),
}
WORD_PIECE = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 1_000_000,
    "vocab": {"[UNK]": 0},
}
TWICE = [replace("a", "b" * 2), replace("b", "a" * 2)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"normalizer": replace("", "x")}, "replaces nothing"),
        ({"normalizer": sequence(*TWICE * 10)}, "more than 64 times as long"),
        ({"normalizer": sequence(*[sequence(*TWICE)] * 10)}, "more than 64 times as long"),
        ({"normalizer": sequence(*[{"type": "NFC"}] * 40)}, "40 steps"),
        ({"normalizer": replace("a", "b" * 1000)}, "1000 characters"),
        ({"normalizer": {"type": "Prepend", "prepend": "b" * 1000}}, "1000 characters"),
        ({"normalizer": PRECOMPILED}, "says that it has 4294967295"),
        ({"normalizer": LONG_REPLACEMENT}, "replacement of 300 bytes; at most 256"),
        ({"model": WORD_PIECE}, "words of 1000000 characters"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "no length"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL] * 9}},
            "more than 64 times as long",
        ),
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "c": 2**32 - 1}}}, "tokenizer.json"),  # type: ignore[dict-item]
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "c": 2**24}}}, "token id 16777216"),  # type: ignore[dict-item]
        ({"model": {**BPE, "vocab": {**BPE["vocab"], "c" * 20_000: 3}}}, "20000 characters"),  # type: ignore[dict-item]
        ({"model": {**BPE, "merges": ["a c"]}}, "tokenizer.json"),
    ],
)
def test_a_pipeline_that_harms_is_refused(
    changed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=says):
        tokenizer_from_directory(directory(tmp_path, **changed))


@pytest.mark.parametrize(
    "model",
    [
        {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"a": 0},
        },
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False},
        {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}},
    ],
    ids=lambda model: model["type"],
)
def test_a_text_that_a_vocabulary_cannot_spell_is_an_error(
    model: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = tokenizer_from_directory(directory(tmp_path, model=model))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(TokenizerError):
        tokenizer.encode("b")


@pytest.mark.parametrize("name", [*BOUNDS, "chat_template.jinja"])
def test_a_side_file_is_bounded_before_it_is_read(name: str, tmp_path: Path) -> None:
    directory(tmp_path)
    size = 3 << 40  # sparse: reading it would never end
    with (tmp_path / name).open("wb") as file:
        os.truncate(file.fileno(), size)
    if name == "model.safetensors.index.json":
        from strata.formats import open_model

        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(FormatError, match=f"{name} has {size} bytes; at most"):
            open_model(tmp_path)
        return
    with pytest.raises(FormatError, match=f"{name} has {size} bytes; at most"):
        tokenizer_from_directory(tmp_path)


def test_values_are_counted_before_they_are_made(tmp_path: Path) -> None:
    directory(tmp_path)
    text = '{"a": [' + "[]," * BOUNDS["config.json"].values + "[]]}"
    assert len(text) < BOUNDS["config.json"].nbytes
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match=r"config\.json: the JSON has about \d+ values"):
        tokenizer_from_directory(tmp_path)


def test_templates_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    directory(tmp_path)
    (tmp_path / "chat_templates").mkdir()
    large = tmp_path / "chat_templates" / "a.jinja"
    large.write_bytes(b" " * (TEMPLATE.nbytes + 1))
    with pytest.raises(FormatError, match=r"a\.jinja has 1000001 bytes"):
        tokenizer_from_directory(tmp_path)
    large.write_bytes(b"\xff")
    with pytest.raises(FormatError, match=r"a\.jinja is not UTF-8"):
        tokenizer_from_directory(tmp_path)
    for number in range(100):
        (tmp_path / "chat_templates" / f"{number}.jinja").touch()
    with pytest.raises(TokenizerError, match="101 chat templates"):
        tokenizer_from_directory(tmp_path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_ids_that_end_texts_are_ids_of_the_vocabulary(name: str, tmp_path: Path) -> None:
    directory(tmp_path)
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [1, -1, 3, 2**40]}))
    assert tokenizer_from_directory(tmp_path).stop_ids == {1}
    for wrong in ("a", 1.5, True, {"a": 1}, [[1]]):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(TokenizerError, match=f"{name}: eos_token_id is"):
            tokenizer_from_directory(tmp_path)


def packed(*texts: bytes) -> PackedStrings:
    raw = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return PackedStrings(raw, len(texts))


LETTERS = [letter.encode() for letter in BYTE_LETTERS]
NOT_UTF8 = "not UTF-8"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tokens": packed(*LETTERS, b"\xff\xfe")}, NOT_UTF8),
        ({"merges": packed(b"a \xff")}, NOT_UTF8),
        ({"tokens": packed(*LETTERS, b"a" * 40_000)}, "40000 characters"),
        ({"tokens": np.zeros(4, np.int32)}, "array of strings"),
        ({"bos_token_id": np.array([1, 2])}, "bos_token_id must be a token id"),
        ({"eos_token_id": np.array([1])}, "eos_token_id must be a token id"),
        ({"eos_token_id": "1"}, "eos_token_id must be a token id"),
        ({"add_bos_token": np.array([True, False])}, "add_bos_token is"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'"),
        ({"pre": np.array([1])}, "pre is"),
        ({"model": np.array([1])}, "model is"),
        ({"token_type": np.zeros(256, np.float32) * np.nan}, "not numbers"),
        ({"token_type": packed(*LETTERS)}, "array of numbers"),
        ({"scores": [[1.0]] * 256}, "array of numbers"),
    ],
)
def test_keys_of_a_gguf_vocabulary_are_checked(keys: dict[str, Any], says: str) -> None:
    good = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": packed(*LETTERS),
        "tokenizer.ggml.merges": packed(b"a b"),
    }
    assert tokenizer_from_gguf(good).encode("ab")
    with pytest.raises(TokenizerError, match=says):
        tokenizer_from_gguf({**good, **{f"tokenizer.ggml.{k}": v for k, v in keys.items()}})


@pytest.mark.parametrize(
    "table", [np.zeros(9, np.float32), "text", packed(b"a"), 5, b"", b"\xff" * 9]
)
def test_a_character_map_is_a_table_of_bytes(table: Any) -> None:
    tokens = {"<unk>": (2, 0.0), "a": (1, -1.0)}
    keys = {"unknown_token_id": 0, "precompiled_charsmap": table}
    with pytest.raises(TokenizerError, match="precompiled_charsmap"):
        tokenizer_from_gguf(metadata("t5", tokens, **keys))


def test_a_character_map_points_into_itself() -> None:
    table = character_map({"a": "b"})
    (size,) = struct.unpack_from("<I", table)
    far = struct.pack("<II", 4, 0x1FFFFF << 10) + b"b\0"
    endless, gone = table[: 4 + size] + b"b", table[: 4 + size] + b"\0"
    gone = gone.replace(struct.pack("<I", 1 << 31), struct.pack("<I", 1 << 31 | 7))
    tokens = {"<unk>": (2, 0.0), "b": (1, -1.0)}
    for hostile, says in ((far, "trie index"), (endless, "replacement"), (gone, "replacement")):
        keys = {"unknown_token_id": 0, "precompiled_charsmap": np.frombuffer(hostile, np.uint8)}
        tokenizer = tokenizer_from_gguf(metadata("t5", tokens, **keys))
        with pytest.raises(TokenizerError, match=f"{says} out of bounds"):
            tokenizer.encode("a")


def test_a_replacement_is_bounded() -> None:
    table = np.frombuffer(character_map({"a": "b" * 300}), np.uint8)
    tokens = {"<unk>": (2, 0.0), "b": (1, -1.0)}
    keys = {"unknown_token_id": 0, "precompiled_charsmap": table}
    with pytest.raises(TokenizerError, match="a replacement of 300 bytes; at most 256"):
        tokenizer_from_gguf(metadata("t5", tokens, **keys)).encode("a")


def test_a_chat_template_is_a_text_of_bounded_size() -> None:
    good = sentencepiece({"a": 0.0})
    for wrong in (np.array([1]), 7, "x" * 1_000_001):
        with pytest.raises(TokenizerError, match="chat template"):
            tokenizer_from_gguf({**good, "tokenizer.chat_template": wrong})


def test_panics_are_errors_and_ctrl_c_is_not() -> None:
    from strata.text.pipeline import failures_named

    class PanicException(BaseException):
        """As the library's own."""

    says = "a file: the tokenizers library gave up: because"
    with pytest.raises(StrataError, match=says), failures_named("a file"):
        raise PanicException("because")
    with pytest.raises(KeyboardInterrupt), failures_named("a file"):
        raise KeyboardInterrupt
