"""A GGUF model in one file or in parts `name-00001-of-0000N.gguf`, opened by any of them."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    DuplicateTensorError,
    FileMissingError,
    SplitMismatchError,
    SplitNameError,
    SplitPartMissingError,
    shown,
)
from strata.formats.gguf import GgufHeader, read_header
from strata.formats.gguf_values import Metadata
from strata.formats.tensor_info import TensorInfo

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def open_gguf(
    path: Path, resources: ExitStack, room: int | None = None
) -> tuple[list[DiskFile], Metadata, dict[str, TensorInfo]]:
    """Open the model that `path` is, or is a part of.

    Returns the files in order, the metadata of the first and the tensors of all; the files are
    closed with `resources`.
    """
    file, header = _open_part(path, resources, room)
    count = _split_number(header, "split.count", path)
    if count is None or count <= 1:
        return [file], header.metadata, header.tensors
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        raise SplitNameError(
            f"{path} is one of {count} parts of a model, but is not named like a part "
            "(name-00001-of-0000N.gguf): give it its first name back"
        )
    if int(match["count"]) != count:
        raise SplitMismatchError(
            f"{path} says that the model has {count} parts, its name says {int(match['count'])}: "
            "the file was renamed or belongs to another model"
        )
    files, headers = [], []
    for number in range(1, count + 1):
        part = path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        if part.name == path.name:
            part_file, part_header = file, header
        else:
            part_file, part_header = _open_sibling(part, count, resources, room)
        _check_part(part_header, number, count, part)
        files.append(part_file)
        headers.append(part_header)
    return files, headers[0].metadata, _merge(headers, files)


def _open_part(path: Path, resources: ExitStack, room: int | None) -> tuple[DiskFile, GgufHeader]:
    file = DiskFile(path)
    resources.callback(file.close)
    return file, read_header(file, room)


def _open_sibling(
    path: Path, count: int, resources: ExitStack, room: int | None
) -> tuple[DiskFile, GgufHeader]:
    try:
        return _open_part(path, resources, room)
    except FileMissingError:
        raise SplitPartMissingError(
            f"{path} is missing: the model has {count} parts and all must be in one directory"
        ) from None


def _split_number(header: GgufHeader, key: str, path: Path) -> int | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SplitMismatchError(f"{path}: {key} is {shown(value)}, not a count")
    return value


def _check_part(header: GgufHeader, number: int, count: int, path: Path) -> None:
    says = _split_number(header, "split.no", path), _split_number(header, "split.count", path)
    if says != (number - 1, count):
        raise SplitMismatchError(
            f"{path} is named as part {number} of {count}, but its split.no is {says[0]} (counted "
            f"from 0) and its split.count {says[1]}: it was renamed or belongs to another model"
        )


def _merge(headers: list[GgufHeader], files: list[DiskFile]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name in tensors:
                raise DuplicateTensorError(
                    f"{info.path}: the tensor {shown(name)} is also in {tensors[name].path}"
                )
            tensors[name] = info
    expected = _split_number(headers[0], "split.tensors.count", files[0].path)
    if expected is not None and expected != len(tensors):
        raise SplitMismatchError(
            f"{files[0].path}: the model has {expected} tensors, but its parts hold "
            f"{len(tensors)}: the parts are of different models"
        )
    return tensors
