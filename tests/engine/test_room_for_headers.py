"""What a budget has no room for is refused before it is read, in a group of exactly the budget."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import make_tiny_models
from strata.errors import StrataError
from strata.llm import LLM
from strata.memory import peak_bytes
from support.weighing import settled_bytes

BUDGET = 60_000_000
"""Beside what this process takes already."""


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _large_header(target: Path) -> Path:
    """A GGUF file of 200 MB of metadata; its text is a hole in the file."""
    path = target / "m.gguf"
    size = 200_000_000
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _text(b"general.name"))
        file.write(struct.pack("<IQ", 8, size))
        file.truncate(file.tell() + size)
    return path


def _directory(target: Path) -> Path:
    return make_tiny_models.write_directory(target / "m", make_tiny_models.golden("llama"))


def _many_tokens(target: Path) -> Path:
    path = _directory(target)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"{n:x}~": len(vocabulary) + n for n in range(400_000)}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def _long_token(target: Path) -> Path:
    path = _directory(target)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["x" * 60_000_000] = 999
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def _many_values(target: Path) -> Path:
    path = _directory(target)
    text = '{"added_tokens_decoder": {}, "a": [' + "{}," * 480_000 + "{}]}"
    (path / "tokenizer_config.json").write_text(text)
    return path


def _long_safetensors_header(target: Path) -> Path:
    """40 MB of spaces after the object, which the format allows."""
    return _padded(target, 40_000_000, b" ")


def _many_tensors(target: Path) -> Path:
    """Half a million values in a note that nobody reads."""
    return _padded(target, 0, b"", note="{" * 500_000)


def _padded(target: Path, size: int, pad: bytes, note: str = "") -> Path:
    path = _directory(target)
    file = path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = {"note": note}
    text = json.dumps(header).encode() + pad * size
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_large_header, "header larger than .* the memory budget has no room"),
        pytest.param(
            _many_tokens,
            r"its tokenizer of 4\d{5} tokens .* takes \d+ MB; it needs \d+MB",
            marks=pytest.mark.slow,
        ),
        pytest.param(_long_token, r"its tokenizer of .* needs \d+MB", marks=pytest.mark.slow),
        (
            _long_safetensors_header,
            r"the header is 4\d{7} bytes long; .* budget has no room",
        ),
        pytest.param(
            _many_tensors,
            r"header at byte 8: the JSON has about \d+ values",
            marks=pytest.mark.slow,
        ),
        (_many_values, r"tokenizer_config\.json: the JSON has about \d+ values"),
    ],
)
def test_what_has_no_room_is_not_read(
    make: Callable[[Path], Path], says: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(StrataError):  # the libraries are there from here on
        LLM(tmp_path / "none", memory=settled_bytes())
    before = peak_bytes()
    with pytest.raises(StrataError, match=says):
        LLM(path, memory=settled_bytes() + BUDGET)
    assert peak_bytes() - before < BUDGET
