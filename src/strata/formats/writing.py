"""What writers of model files share: tensors from iterators, room on the disk, no half files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from strata.formats.errors import DiskFullError, WriteError, shown
from strata.quant import BlockType
from strata.records import dataclass
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


class ResumedFile:
    """A file that is being written, and how much of it an earlier run has left.

    A thread writes behind whoever makes the bytes, one piece at a time.
    """

    def __init__(self, out: BinaryIO, marker: Path, job: str, done: int, end: int) -> None:
        self._out = out
        self.done = done
        """Tensors that are there; what is written next comes behind the last of them."""
        self._behind = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._marker = marker
        self._job = job
        self._end = end
        self._marked = monotonic()

    def write(self, data: bytes | memoryview) -> None:
        """Have bytes written, which nobody changes any more, once those before them are. Raises
        what writing those raised."""
        self._next(partial(self._write, data))

    def mark(self, tensors: int) -> None:
        """So many tensors are written: noted beside the file every few seconds."""
        self._next(partial(self._mark, tensors))

    def finish(self) -> None:
        """All that was given is with the system."""
        self._next(self._out.flush)
        self._behind.shutdown()
        if self._last is not None:
            self._last.result()

    def stop(self) -> None:
        """Note what is there, as this ends badly, if the system lets us. What lies behind the last
        whole tensor is of no use, and may be what is too much."""
        self._behind.shutdown()
        with suppress(OSError):
            self._out.flush()
        if self.done:
            with suppress(OSError):
                os.truncate(self._out.fileno(), self._end)
                self._note()

    def _next(self, work: Callable[[], None]) -> None:
        before = self._last
        if before is not None:
            before.result()
        self._last = self._behind.submit(work)

    def _write(self, data: bytes | memoryview) -> None:
        self._out.write(data)

    def _mark(self, tensors: int) -> None:
        # What is still to be flushed, a full disk may refuse.
        self._out.flush()
        self.done, self._end = tensors, self._out.tell()
        if monotonic() - self._marked > _SECONDS_BETWEEN_MARKS:
            os.fdatasync(self._out.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._note()
            self._marked = monotonic()

    def _note(self) -> None:
        note = {"job": self._job, "tensors": self.done, "bytes": self._end}
        new = self._marker.with_name(self._marker.name + ".new")
        new.write_text(json.dumps(note), encoding="ascii")
        os.replace(new, self._marker)


_SECONDS_BETWEEN_MARKS = 5.0
_LONGEST_NOTE = 4096


@contextmanager
def resumed_file(path: Path, total: int, job: str) -> Iterator[ResumedFile]:
    """A file of `total` bytes to write, or to write on if a run of the same `job` was interrupted.

    It appears under its name only when the block ends well. Until then it is `path`.partial, with
    `path`.partial.job beside it, which says how much of it can be believed. Raises DiskFullError,
    WriteError, or WriteError at once if another process is writing it.
    """
    unfinished = path.with_name(path.name + ".partial")
    marker = path.with_name(path.name + ".partial.job")
    tensors, end = _left(unfinished, marker, job)
    check_room(path.parent, total - end, str(path))
    try:
        with unfinished.open("r+b" if end else "ab") as out:
            _lock(out, unfinished)
            if not end:
                marker.unlink(missing_ok=True)
            out.truncate(end)
            out.seek(end)
            file = ResumedFile(out, marker, job, tensors, end)
            try:
                yield file
                file.finish()
            except BaseException:
                file.stop()
                raise
        os.replace(unfinished, path)
        marker.unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{path}: the disk became full; what was written stays as {unfinished.name}: make "
                "room and run this again to go on"
            ) from None
        raise WriteError(f"{path} cannot be written: {error}") from None


def _left(partial: Path, marker: Path, job: str) -> tuple[int, int]:
    """Tensors and bytes that an interrupted run of the job has left; zeros if there are none."""
    try:
        with marker.open(encoding="ascii") as file:
            note = json.loads(file.read(_LONGEST_NOTE))
        tensors, end = note["tensors"], note["bytes"]
        usable = note["job"] == job and type(tensors) is int and type(end) is int and tensors > 0
        if usable and 0 < end <= partial.stat().st_size:
            return tensors, end
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, 0


def _lock(out: BinaryIO, partial: Path) -> None:
    try:
        fcntl.flock(out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise WriteError(f"{partial} is being written by another process: wait for it") from None


def write_tensor(
    out: BinaryIO | ResumedFile, tensor: TensorSource, written: Written | None = None
) -> None:
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
