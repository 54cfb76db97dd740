"""What writers of model files share: tensors from iterators, room on the disk, no half files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import DiskFullError, WriteError, shown
from strata.quant import BlockType
from strata.sizes import format_size

Written = Callable[[int], None]
"""Told of the bytes of each piece that was written."""


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write. `shape` is rows first; `chunks` gives its bytes in block format, in order,
    as pieces of any size, and is called once, when the tensor's turn has come."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    chunks: Callable[[], Iterable[NDArray[np.uint8]]]

    @classmethod
    def of(
        cls, name: str, shape: tuple[int, ...], type: BlockType, raw: NDArray[Any]
    ) -> TensorSource:
        """A tensor whose bytes are in memory; `raw` is read as bytes."""
        data = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
        return cls(name, shape, type, lambda: (data,))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.type.tensor_nbytes(self.shape)


def check_room(directory: Path, total: int, what: str) -> None:
    """Raise DiskFullError if the disk of `directory` has not `total` bytes free."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise WriteError(f"{what} cannot be written: {error}") from None
    if total > free:
        raise DiskFullError(
            f"{what} takes {format_size(total)}, but {format_size(free)} are free on that disk: "
            "make room or choose another directory"
        )


@contextmanager
def new_file(path: Path, total: int, *, keep_partial: bool = False) -> Iterator[BinaryIO]:
    """A file of `total` bytes to write; it appears under its name only when the block ends well.

    Otherwise nothing stays, unless `keep_partial` asks for `path`.partial. Raises DiskFullError
    before the first byte, or when the disk is full after all, and WriteError when the system
    refuses.
    """
    check_room(path.parent, total, str(path))
    partial = path.with_name(path.name + ".partial")
    done = False
    try:
        with partial.open("wb") as out:
            yield out
        os.replace(partial, path)
        done = True
    except OSError as error:
        if is_disk_full(error):
            kept = f"{partial} was kept" if keep_partial else "what was written is removed"
            raise DiskFullError(
                f"{path}: the disk became full; {kept}: make room or choose another directory"
            ) from None
        raise WriteError(f"{path} cannot be written: {error}") from None
    finally:
        if not done and not keep_partial:
            partial.unlink(missing_ok=True)


def write_tensor(out: BinaryIO, tensor: TensorSource, written: Written | None = None) -> None:
    """Write a tensor's bytes; WriteError if its chunks are not exactly that many."""
    size = tensor.nbytes
    done = 0
    for chunk in tensor.chunks():
        done += chunk.size
        if chunk.dtype != np.uint8 or done > size:
            break
        out.write(np.ascontiguousarray(chunk).data)
        if written is not None:
            written(chunk.size)
    if done != size:
        raise WriteError(
            f"tensor {shown(tensor.name)} of shape {tensor.shape} and type {tensor.type.name} "
            f"takes {size} bytes, but {done} were given"
        )


def refuse_duplicates(tensors: Sequence[TensorSource]) -> None:
    """Raise WriteError if two tensors share a name."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise WriteError("two tensors have the same name")


def is_disk_full(error: OSError) -> bool:
    """Whether ``error`` says that the disk, or this user's share of it, is full."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
