"""A file opened for reading at any offset, from any thread."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from strata.formats.errors import (
    ClosedError,
    FileMissingError,
    FileUnreadableError,
    NotAFileError,
    ShortReadError,
    shown,
)
from strata.records import dataclass


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from one that was put in its place or written over."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class DiskFile:
    """A regular file, its identity and size at opening, and exact reads from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Looked at before opening, because opening a pipe would wait for a writer.
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                raise NotAFileError(f"{path} is not a file: give the path of a model file")
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissingError(f"{path} does not exist") from None
        except OSError as error:
            raise FileUnreadableError(f"{path} cannot be opened: {error.strerror}") from None
        except ValueError as error:
            raise FileUnreadableError(f"{shown(str(path))} is not a path: {error}") from None
        self.identity = _identity(self._fd)
        self.size = self.identity.size

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset`; ShortReadError if the file has become shorter."""
        buffer = bytearray(nbytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset`."""
        if self._fd < 0:
            raise ClosedError(f"{self.path} was closed")
        done = 0
        while done < len(buffer):
            try:
                # Linux moves at most 2 GB a call, so a large tensor takes several.
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise FileUnreadableError(
                    f"{self.path} cannot be read at byte {offset + done}: {error}"
                ) from None
            if got == 0:
                raise ShortReadError(
                    f"{self.path} ends at byte {offset + done}, but {len(buffer) - done} more were "
                    "there when it was opened: the file changed; download or copy it again"
                )
            done += got

    def unchanged(self) -> bool:
        """Whether nobody has written to the file since it was opened, and it is open."""
        return self._fd >= 0 and _identity(self._fd) == self.identity

    def forget_cached(self, offset: int = 0, nbytes: int = 0) -> None:
        """Give back the page cache that the file, or a part of it, takes, where the system lets
        us; 0 bytes are all that follow."""
        if self._fd >= 0 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _identity(fd: int) -> FileIdentity:
    seen = os.fstat(fd)
    return FileIdentity(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
