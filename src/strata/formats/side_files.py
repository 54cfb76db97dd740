"""The files of a Hugging Face directory beside its weights, bounded before any byte is read.

No real model comes near the bounds: a file beyond one is no such file, and would take the memory
that a budget has for other things.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strata.formats.disk_file import DiskFile
from strata.formats.errors import HeaderTooLargeError, InvalidTextError
from strata.formats.json_text import parse_object
from strata.records import dataclass


@dataclass(frozen=True)
class Bound:
    """The most ``nbytes`` of a file, and for JSON the most ``values`` in it: each takes some
    hundred bytes when it is parsed, as short as it may be written."""

    nbytes: int
    values: int = 0

    def within(self, room: int | None) -> Bound:
        """The same, or less where reading may take no more than ``room`` bytes."""
        if room is None:
            return self
        return Bound(min(self.nbytes, room // _TEXT_COPIES), min(self.values, room // _VALUE_BYTES))


# The bytes, their characters, and the strings made of them; a value without its characters.
_TEXT_COPIES = 4
_VALUE_BYTES = 150
_SETTINGS = Bound(2_000_000, 100_000)
BOUNDS = {
    "config.json": _SETTINGS,
    "generation_config.json": _SETTINGS,
    "special_tokens_map.json": _SETTINGS,
    # Some thousand added tokens of eight flags each are usual.
    "tokenizer_config.json": Bound(8_000_000, 500_000),
    "model.safetensors.index.json": Bound(64_000_000, 1_000_000),
    # Read by the tokenizers library. The largest known are of 35 MB.
    "tokenizer.json": Bound(128_000_000),
}
TEMPLATE = Bound(1_000_000)


def check_size(path: Path, bound: Bound | None = None) -> None:
    """HeaderTooLargeError if a file is larger than its kind may be."""
    _check_size(path, path.stat().st_size, bound or BOUNDS[path.name])


def read_object(path: Path, room: int | None = None) -> dict[str, Any]:
    """The JSON object in a file of one of the names in ``BOUNDS``; ``room`` are the bytes that
    reading it may take, where a budget says. Raises a FormatError."""
    bound = BOUNDS[path.name].within(room)
    return parse_object(_read(path, bound), str(path), most_values=bound.values)


def read_object_if_there(path: Path, room: int | None = None) -> dict[str, Any]:
    """The same, and an empty object where there is no such file."""
    return read_object(path, room) if path.is_file() else {}


def read_template(path: Path) -> str:
    """The text of a chat template. Raises a FormatError."""
    raw = _read(path, TEMPLATE)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidTextError(f"{path} is not UTF-8 (byte {error.start})") from None


def _read(path: Path, bound: Bound) -> bytes:
    file = DiskFile(path)
    try:
        _check_size(path, file.size, bound)
        return file.read(0, file.size)
    finally:
        file.close()


def _check_size(path: Path, size: int, bound: Bound) -> None:
    if size > bound.nbytes:
        raise HeaderTooLargeError(
            f"{path} has {size} bytes; at most {bound.nbytes} are read: this is no file of a "
            "model, or one for which the memory budget has no room"
        )
