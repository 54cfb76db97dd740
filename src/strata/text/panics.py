"""Keeps from the terminal what the tokenizers library says of a panic, which has a named error.

The library writes it to descriptor 2 by itself, where nothing in Python sees it. So descriptor 2 is
a file for as long as a foreign tokenizer is at work, by one thread at a time; whatever else came
there meanwhile goes on to where it was to go.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

_ERRORS = 2
_lock = threading.RLock()
_depth = 0


@contextmanager
def panics_untold() -> Iterator[None]:
    """Within the block a panic of the library is only raised, not told on standard error."""
    global _depth
    with _lock:
        before = None if _depth else _turned_away()
        _depth += 1
        panic: str | None = None
        try:
            yield
        except BaseException as error:
            panic = str(error) if is_panic(error) else None
            raise
        finally:
            _depth -= 1
            if before is not None:
                _turn_back(before, panic)


def is_panic(error: BaseException) -> bool:
    """Whether it is one of a library in Rust, which is no Exception."""
    return type(error).__name__ == "PanicException"


def _turned_away() -> int | None:
    """Where descriptor 2 led, now that it leads to a file; None if there is no such descriptor."""
    try:
        before = os.dup(_ERRORS)
    except OSError:
        return None
    try:
        with suppress(ValueError, AttributeError):
            sys.stderr.flush()
        os.dup2(_file(), _ERRORS)
    except OSError:
        os.close(before)
        return None
    return before


def _turn_back(before: int, panic: str | None) -> None:
    with suppress(ValueError, AttributeError, OSError):
        sys.stderr.flush()
    os.dup2(before, _ERRORS)
    os.close(before)
    file = _file()
    size = os.lseek(file, 0, os.SEEK_CUR)
    if not size:
        return
    said = os.pread(file, size, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.ftruncate(file, 0)
    if panic is not None:
        said = _without(said, panic.encode("utf-8", "surrogateescape"))
    with suppress(OSError):
        while said:
            said = said[os.write(_ERRORS, said) :]


def _without(said: bytes, panic: bytes) -> bytes:
    """What was said but for a panic's lines: where it was, its message, frames and a hint."""
    where = rb"\n?thread '[^'\n]*'(?: \(\d+\))? panicked at [^\n]*\n"
    frames = rb"(?:stack backtrace:\n(?:[ \t]+[^\n]*\n)*)?"
    hint = rb"(?:note: [^\n]*`RUST_BACKTRACE[^\n]*\n)?"
    return re.sub(where + re.escape(panic) + rb"\n" + frames + hint, b"", said)


@cache
def _file() -> int:
    """Of this process; one that is forked while it is in use has the same, which does no harm."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("strata-standard-error", os.MFD_CLOEXEC)
    import tempfile

    return os.dup(tempfile.TemporaryFile().fileno())
