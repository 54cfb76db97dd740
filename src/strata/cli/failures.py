"""Every way a command can end badly: its exit code, its one line, its JSON object."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click

from strata.cli.console import print_json, printable
from strata.errors import StrataError, UsageError

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
READER_GONE = 141

_TOLD = 1000
"""Characters of the beginning of a message, and of its end: files are quoted in some."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does, but for its code and word."""


@contextmanager
def terminable() -> Iterator[None]:
    """For commands that work for long: SIGTERM raises Terminated, so that they end as with Ctrl-C;
    a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        # None: a handler that is not Python's.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def resumable() -> Iterator[None]:
    """What is interrupted here is gone on with by the same command, as its line then says."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = ("the same command goes on from here",)
        raise


def error_object(error: BaseException) -> dict[str, str]:
    """What ``report`` prints with ``--json``, for who has begun an object: with ``error.in_json``
    set, no other follows."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        _, kind, message = _interruption(error)
        return {"type": kind, "message": message}
    _, kind, message = _describe(error)
    return {"type": kind, "message": message}


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the user what ended the command and return the exit code that belongs to it."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if os.environ.get("STRATA_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return READER_GONE
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        code, kind, message = _interruption(error)
    else:
        code, kind, message = _describe(error)
    if as_json and not getattr(error, "in_json", False):
        # The reader of the object may be what failed; the line below must appear all the same.
        with suppress(OSError):
            print_json({"error": {"type": kind, "message": message}})
            sys.stdout.flush()
    with suppress(OSError):
        click.echo(f"strata: error: {message}", err=True)
    return code


def _interruption(error: BaseException) -> tuple[int, str, str]:
    code, what = INTERRUPTED, "interrupted"
    if isinstance(error, Terminated):
        code, what = TERMINATED, "terminated"
    return code, what.capitalize(), "; ".join((what, *error.args))


def _describe(error: BaseException) -> tuple[int, str, str]:
    kind = type(error).__name__
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "strata"
        said = f"{error.format_message().removesuffix('.')}{_origin(error)} (see {path} --help)"
        return WRONG_USAGE, "UsageError", _one_line(said)
    if isinstance(error, click.ClickException):
        return FAILED, kind, _one_line(error.format_message())
    if isinstance(error, UsageError):
        return WRONG_USAGE, kind, _one_line(str(error))
    if isinstance(error, StrataError):
        return FAILED, kind, _one_line(str(error))
    if isinstance(error, MemoryError):
        return FAILED, kind, "this machine has not enough free memory for that"
    if isinstance(error, OSError):
        return FAILED, kind, _one_line(_describe_os_error(error))
    return (
        FAILED,
        kind,
        _one_line(f"unexpected {kind}: {error} (set STRATA_DEBUG=1 for the traceback)"),
    )


def _origin(error: click.UsageError) -> str:
    """Where a wrong value was said, if not on the command line."""
    param, ctx = getattr(error, "param", None), error.ctx
    if param is None or ctx is None:
        return ""
    if ctx.get_parameter_source(param.name) is not click.core.ParameterSource.DEFAULT_MAP:
        return ""
    origin = ctx.meta.get("strata.origins", {}).get(param.name)
    return f" (from {origin})" if origin else ""


def _describe_os_error(error: OSError) -> str:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _one_line(message: str) -> str:
    # Names and texts of files are in it, which may hold what a terminal obeys.
    line = " ".join(message.split())
    if len(line) > 2 * _TOLD:
        # What is wrong is said at its end as often as at its beginning.
        line = f"{line[:_TOLD]} ... {line[-_TOLD:]}"
    return printable(line)


def _forget_stdout() -> None:
    # Python flushes standard output once more at exit, which would complain about the same pipe.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
