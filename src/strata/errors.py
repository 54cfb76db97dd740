"""Every error a user can meet. Each says what is wrong and, where it can, what to do about it."""

from __future__ import annotations


class StrataError(Exception):
    """Base of every error raised on purpose; the command line prints one line, exit code 1."""


class UsageError(StrataError):
    """The caller asked for something that cannot be asked for; exit code 2, a 4xx over HTTP."""


class ArgumentTypeError(UsageError, TypeError):
    """An argument of another type than can be used."""


class OutOfMemoryError(StrataError, MemoryError):
    """The system refused memory that was to be had by the budget."""


class ThreadStartError(StrataError, RuntimeError):
    """The system refused one more thread."""
