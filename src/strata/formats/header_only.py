"""A model of which only the header is known: enough to build and plan it, not to run it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import ClosedError
from strata.formats.gguf import DEFAULT_ALIGNMENT
from strata.formats.model_file import Kind, ModelFile
from strata.formats.tensor_info import TensorInfo
from strata.quant import BlockType


class HeaderOnly(ModelFile):
    """Metadata and tensor index without the tensors' bytes: of a model that is described in a
    table, or lies elsewhere. Reading raises ClosedError."""

    def __init__(
        self,
        kind: Kind,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        file_bytes: int | None = None,
    ) -> None:
        self.kind = kind
        self.path = path
        self.directory = path if kind == "huggingface" else path.parent
        self.metadata = metadata
        self.tensors = MappingProxyType(dict(tensors))
        self._files = {}
        self._fp8, self._foreign, self._repacked = {}, {}, None
        self._resources = ExitStack()
        self._file_bytes = self.nbytes if file_bytes is None else file_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that hold tensors, as far as they are known."""
        return self._file_bytes

    def sidecar(self, name: str) -> None:
        """Nothing lies beside a header."""

    def readinto(
        self, name: str, buffer: NDArray[np.uint8], rows: tuple[int, int] | None = None
    ) -> None:
        """There is nothing to read: raises ClosedError."""
        raise ClosedError(f"{self.path}: only the header is here; tensor {name!r} cannot be read")


def with_types(file: ModelFile, types: Mapping[str, BlockType]) -> HeaderOnly:
    """The header that a GGUF file would have with some of its tensors in other types."""
    infos, offset = {}, 0
    for name, info in file.tensors.items():
        type = types.get(name, info.type)
        nbytes = type.tensor_nbytes(info.shape)
        infos[name] = TensorInfo(name, info.shape, type, file.path, offset, nbytes)
        offset += -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
    return HeaderOnly(file.kind, file.path, file.metadata, infos)


class Blank(HeaderOnly):
    """What a model says of itself before it has tensors: a family answers with those that it looks
    for (``models.wanted_tensors``). ``tensors`` are those by which families tell kinds of files."""
