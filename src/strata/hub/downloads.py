"""What every download shares: the cache folder, progress, one process at a time, free space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from strata.errors import StrataError
from strata.sizes import format_size

Progress = Callable[[str, int, int | None], None]
"""``progress(label, bytes_done, bytes_total)``; the total is None while it is unknown."""

# What a file system keeps back for its own book-keeping when a file of a known size is written.
_SPACE_MARGIN = 16 * 1024 * 1024


class DownloadError(StrataError):
    """A model could not be fetched, or what arrived is not what was promised."""


class ModelNotFound(StrataError):
    """Nothing by this name: no file, no built-in model, no repository, or not in the cache."""


def strata_home() -> Path:
    """Strata's cache: ``$STRATA_HOME``, ``$XDG_CACHE_HOME/strata`` or ``~/.cache/strata``."""
    home = os.environ.get("STRATA_HOME")
    if home:
        return Path(home).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification says that a relative path there is to be ignored.
    root = Path(cache) if cache and os.path.isabs(cache) else Path.home() / ".cache"
    return root / "strata"


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold ``lock`` against other processes; the operating system frees it if the holder dies."""
    from filelock import FileLock

    with FileLock(lock):
        yield


def require_free_space(directory: Path, needed: int, what: str) -> None:
    """Raise DownloadError when the disk of ``directory`` cannot take ``needed`` more bytes."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + _SPACE_MARGIN:
        raise DownloadError(
            f"{what} needs {format_size(needed)} in {directory}, where {format_size(free)} are "
            "free; make room there or set STRATA_HOME or HF_HOME to a larger disk"
        )
