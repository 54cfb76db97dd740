"""What is entered in books before it is allocated, and taken out where that fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from strata.backends.base import Books


class _Entries(Books):
    """What was entered in books since."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._taken: list[tuple[str, int]] = []

    def take(self, owner: str, nbytes: int) -> None:
        self._books.take(owner, nbytes)
        self._taken.append((owner, nbytes))

    def give(self, owner: str, nbytes: int) -> None:
        self._books.give(owner, nbytes)
        if (owner, nbytes) in self._taken:
            self._taken.remove((owner, nbytes))

    def undo(self) -> None:
        for owner, nbytes in self._taken:
            self._books.give(owner, nbytes)


class _Keeper(Protocol):
    _books: Books


K = TypeVar("K", bound=_Keeper)
P = ParamSpec("P")
R = TypeVar("R")


def all_or_nothing(
    method: Callable[Concatenate[K, P], R],
) -> Callable[Concatenate[K, P], R]:
    """What a method entered in the books is taken out again if it then could not be had."""

    @wraps(method)
    def wrapped(self: K, /, *args: P.args, **kwargs: P.kwargs) -> R:
        books = self._books
        self._books = entries = _Entries(books)
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            entries.undo()
            raise
        finally:
            self._books = books

    return wrapped
