"""A file of Strata's own: a model of which matrices are kept in formats that are studied.

It is a safetensors file. ``__metadata__`` has ``format``: ``strata-1``, and ``weights``: a JSON
object that says of each such matrix, by its GGUF name, ``format`` (a name of
``strata.quant.research.FORMATS``), ``shape`` and that format's settings; its parts are the tensors
``NAME:PART``. The tensor ``gguf`` (bytes) is the header of a GGUF file without tensors: all of the
model's metadata, tokenizer and all. Other tensors are as in GGUF files, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from strata.formats.disk_file import DiskFile
from strata.formats.errors import ForeignFormatError, JsonTypeError, UnknownFormatError, shown
from strata.formats.foreign.weight import Arrays, ForeignWeight, check, part, presented
from strata.formats.gguf import read_header as read_gguf_header
from strata.formats.json_text import parse_object
from strata.formats.safetensors import read_noted_header
from strata.formats.tensor_info import TensorInfo
from strata.quant import research
from strata.quant.block_type import Raw
from strata.quant.repack import as_floats

FORMAT = "strata-1"
HEADER = "gguf"
_MOST_VALUES = 8_000_000
_STEP = 128


class _Within(DiskFile):
    """Some bytes of a file, as a file."""

    def __init__(self, file: DiskFile, info: TensorInfo) -> None:
        self.path, self.size, self.identity = file.path, info.nbytes, file.identity
        self._file, self._offset = file, info.offset

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """As of the whole file, which is closed by its owner."""
        self._file.readinto(self._offset + offset, buffer)


def open_research(
    path: Path, resources: ExitStack, room: int | None = None
) -> tuple[DiskFile, Mapping[str, Any], dict[str, TensorInfo], dict[str, ForeignWeight]]:
    """Open such a file: itself, the model's metadata, its tensors, and those that are put together.
    The file is closed with ``resources``. Raises UnknownFormatError for another safetensors file,
    else the FormatError that fits."""
    file = DiskFile(path)
    resources.callback(file.close)
    stored, notes = read_noted_header(file, room)
    if notes.get("format") != FORMAT:
        raise UnknownFormatError(
            f"{path} is part of a Hugging Face model: give its directory {path.parent} instead"
        )
    where = f"{path}: 'weights' of __metadata__"
    said = parse_object(notes.get("weights", "{}").encode(), where, _MOST_VALUES)
    weights = {}
    for name, settings in said.items():
        if not isinstance(settings, dict):
            raise JsonTypeError(f"{where}: {shown(name)} has {shown(settings)}, not an object")
        try:
            weights[name] = _weight(stored, name, settings)
        except ForeignFormatError as error:
            raise ForeignFormatError(f"{path}: {error}") from None
    gone = {info.name for weight in weights.values() for info in weight.parts.values()}
    header = read_gguf_header(_Within(file, _header(stored, path)), room)
    if header.tensors:
        raise ForeignFormatError(f"{path}: its header of GGUF has tensors, which belong beside it")
    tensors = {n: info for n, info in stored.items() if n not in gone and n != HEADER}
    twice = next((n for n in weights if n in tensors), None)
    if twice is not None:
        raise ForeignFormatError(f"{path}: tensor {shown(twice)} is there twice")
    tensors |= {name: weight.info for name, weight in weights.items()}
    return file, header.metadata, tensors, weights


def _header(stored: Mapping[str, TensorInfo], path: Path) -> TensorInfo:
    try:
        return check(part(stored, HEADER), ("U8",))
    except ForeignFormatError as error:
        raise ForeignFormatError(f"{path}: {error}") from None


def _weight(stored: Mapping[str, TensorInfo], name: str, said: Mapping[str, Any]) -> ForeignWeight:
    kind, shape = said.get("format"), said.get("shape")
    format = research.FORMATS.get(kind) if isinstance(kind, str) else None
    if format is None:
        raise ForeignFormatError(
            f"tensor {shown(name)} has the format {shown(kind)}; readable are "
            + ", ".join(research.FORMATS)
        )
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(x) is int for x in shape)
    if not whole or not isinstance(shape, list) or min(shape) < 1:
        raise ForeignFormatError(f"tensor {shown(name)} has the shape {shown(shape)}")
    n, k = shape
    if n > 1 << 24 or not format.takes(n, k):
        raise ForeignFormatError(f"tensor {shown(name)} of {n} x {k} is none that {kind} keeps")
    settings = {}
    for key, (least, most) in format.settings.items():
        value = said.get(key)
        if type(value) is not int or not least <= value <= most:
            raise ForeignFormatError(
                f"tensor {shown(name)}: '{key}' is {shown(value)}, not from {least} to {most}"
            )
        settings[key] = value
    parts = {
        key: check(part(stored, f"{name}:{key}"), (type,), size)
        for key, (type, size) in format.parts(settings, n, k).items()
    }
    first = next(iter(parts.values()))
    rows = partial(_rows, format, settings, (n, k))
    return ForeignWeight(presented(name, (n, k), "F32", first), parts, rows, (), _STEP)


def _rows(
    format: research.Format,
    settings: research.Settings,
    shape: tuple[int, int],
    arrays: Arrays,
    first: int,
    last: int,
) -> Raw:
    with np.errstate(over="ignore", invalid="ignore"):
        return as_floats("F32", format.rows(settings, dict(arrays), shape, first, last))
