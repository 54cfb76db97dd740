"""A Hugging Face directory: config.json beside one safetensors file, or several with an index."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from strata.formats import safetensors
from strata.formats.disk_file import DiskFile
from strata.formats.errors import (
    ConfigMissingError,
    DuplicateTensorError,
    FileMissingError,
    IndexPathError,
    IndexTensorError,
    JsonTypeError,
    ShardMissingError,
    WeightsAmbiguousError,
    WeightsMissingError,
    shown,
)
from strata.formats.side_files import read_object
from strata.formats.tensor_info import TensorInfo

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_NAME = 200


def open_directory(
    directory: Path, resources: ExitStack, room: int | None = None
) -> tuple[list[DiskFile], dict[str, Any], dict[str, TensorInfo]]:
    """Open the model in a directory.

    Returns its weight files, the object in config.json and the stored tensors; the files are closed
    with `resources`.
    """
    try:
        config = read_object(directory / CONFIG, room)
    except FileMissingError:
        raise ConfigMissingError(
            f"{directory} has no {CONFIG}: give the directory of a Hugging Face model, or the path "
            "of a .gguf file"
        ) from None
    weight_map = None
    if not (directory / SINGLE).is_file() and (directory / INDEX).is_file():
        weight_map = _read_index(directory / INDEX, room)
        names = sorted(set(weight_map.values()))
    else:
        names = [_single(directory)]
    files: list[DiskFile] = []
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        file = _open_shard(directory / name, resources)
        files.append(file)
        for info in safetensors.read_header(file, room).values():
            if info.name in tensors:
                raise DuplicateTensorError(
                    f"{file.path}: the tensor {shown(info.name)} is also in "
                    f"{tensors[info.name].path}"
                )
            tensors[info.name] = info
    if weight_map is not None:
        _check_index(weight_map, tensors, directory / INDEX)
    return files, config, tensors


def _single(directory: Path) -> str:
    """The one weight file of a directory without an index."""
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if SINGLE in found:
        return SINGLE
    if not found:
        raise WeightsMissingError(
            f"{directory} has no .safetensors file: download the weights, or convert others "
            "(.bin, .pth) to safetensors"
        )
    if len(found) > 1:
        raise WeightsAmbiguousError(
            f"{directory} has {len(found)} .safetensors files and no {INDEX}: download the index"
        )
    return found[0]


def _read_index(path: Path, room: int | None) -> dict[str, str]:
    weight_map = read_object(path, room).get("weight_map")
    if not isinstance(weight_map, dict):
        raise JsonTypeError(f"{path}: weight_map is missing or not an object")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise JsonTypeError(f"{path}: weight_map has {shown(name)} for {shown(tensor)}")
        # A plain name cannot lead out of the directory, whatever the operating system.
        odd = set(name) & set("/\\:") or not name.isprintable() or len(name) > _LONGEST_NAME
        if odd or not name.endswith(".safetensors"):
            raise IndexPathError(
                f"{path}: tensor {shown(tensor)} is said to be in {shown(name)}, which is not the "
                "name of a .safetensors file in the same directory"
            )
    if not weight_map:
        raise WeightsMissingError(f"{path}: weight_map is empty")
    return weight_map


def _open_shard(path: Path, resources: ExitStack) -> DiskFile:
    try:
        file = DiskFile(path)
    except FileMissingError:
        raise ShardMissingError(
            f"{path} is named by the index but is not there: download it"
        ) from None
    resources.callback(file.close)
    return file


def _check_index(weight_map: dict[str, str], tensors: dict[str, TensorInfo], path: Path) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise IndexTensorError(
                f"{path}: tensor {shown(name)} is said to be in {shown(shard)}, but is not there: "
                "the files are of different models"
            )
    for name in tensors:
        if name not in weight_map:
            raise IndexTensorError(
                f"{tensors[name].path}: tensor {shown(name)} is not in {path.name}: the files are "
                "of different models"
            )
