"""Weights that others quantised, put together once and kept on the disk: rows of a block type one
after the other, which is how weights are loaded and streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.disk_file import DiskFile
from strata.formats.errors import FormatError, WriteError
from strata.formats.foreign.weight import ForeignWeight, ReadPart
from strata.formats.gguf import read_header
from strata.formats.gguf_writer import write_gguf
from strata.formats.tensor_info import TensorInfo
from strata.formats.writing import TensorSource

Progress = Callable[[str, int, int | None], None]

_VERSION = 1


def store_name(files: Iterable[DiskFile], weights: Mapping[str, ForeignWeight]) -> str:
    """The name of the file for a directory's weights: another one as soon as a file is."""
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for file in files:
        digest.update(repr(astuple(file.identity)).encode())
    for weight in weights.values():
        digest.update(repr((weight.info.name, weight.info.shape, weight.info.type.name)).encode())
    return f"{digest.hexdigest()[:32]}.gguf"


def write_store(
    path: Path,
    weights: Mapping[str, ForeignWeight],
    read: ReadPart,
    done_with: Callable[[ForeignWeight], None],
    progress: Progress | None = None,
) -> None:
    """Write all weights, one after the other: of one there are the parts in memory, and some rows.
    ``done_with`` is told of each. The file appears when it is whole."""
    total = sum(weight.info.nbytes for weight in weights.values())
    done = 0

    def chunks(weight: ForeignWeight) -> Iterator[NDArray[np.uint8]]:
        nonlocal done
        arrays = weight.load(read)
        for piece in weight.pieces(arrays, 0, weight.info.shape[0]):
            done += piece.size
            if progress is not None:
                progress("repacking, once", done, total)
            yield piece
        done_with(weight)

    tensors = [
        TensorSource(w.info.name, w.info.shape, w.info.type, lambda w=w: chunks(w))  # type: ignore[misc]
        for w in weights.values()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path.parent} cannot be made: {error.strerror}") from None
    write_gguf(path, {"general.architecture": "strata-repacked"}, tensors)


def open_store(
    path: Path, weights: Mapping[str, ForeignWeight], resources: ExitStack
) -> tuple[DiskFile, dict[str, TensorInfo]] | None:
    """A file that is there and has these weights, None if there is none."""
    if not path.is_file():
        return None
    file = DiskFile(path)
    try:
        header: Any = read_header(file)
        found = {name: header.tensors[name] for name in weights}
        fits = all(
            (info.shape, info.type) == (weights[name].info.shape, weights[name].info.type)
            for name, info in found.items()
        )
    except (FormatError, KeyError):
        fits = False
    if not fits:
        file.close()
        return None
    resources.callback(file.close)
    return file, found
