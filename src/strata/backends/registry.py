"""The backends by their names. Importing this imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.backends.base import Backend


def _cpu() -> type[Backend]:
    from strata.backends.cpu.backend import CpuBackend

    return CpuBackend


def _reference() -> type[Backend]:
    from strata.backends.reference import ReferenceBackend

    return ReferenceBackend


_KNOWN: dict[str, Callable[[], type[Backend]]] = {"cpu": _cpu, "reference": _reference}

DEFAULT = "cpu"


def backend_names() -> tuple[str, ...]:
    """Names that ``backend_class`` knows."""
    return tuple(_KNOWN)


def backend_class(name: str) -> type[Backend]:
    """A backend's class: asked for a model's profile, then for an object. UsageError for a name
    that nobody registered."""
    if name not in _KNOWN:
        raise UsageError(f"there is no backend {name!r}; there are: {', '.join(_KNOWN)}")
    return _KNOWN[name]()


def register(name: str, load: Callable[[], type[Backend]]) -> None:
    """Make a backend known; ``load`` imports it when it is asked for first. UsageError if the name
    is taken."""
    if name in _KNOWN:
        raise UsageError(f"there is a backend {name!r} already")
    _KNOWN[name] = load
