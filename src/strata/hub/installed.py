"""The models that can be named without a download, wherever they are kept."""

from __future__ import annotations

from pathlib import Path

from strata.hub.builtin import BUILTINS
from strata.hub.cache import cached_models
from strata.hub.repository_files import quant_tag
from strata.records import dataclass


@dataclass(frozen=True)
class InstalledModel:
    """A model by the name that ``resolve`` takes. Size in bytes, modified in seconds since 1970.

    A built-in model that is not downloaded yet has neither path nor time.
    """

    name: str
    quant: str | None
    size: int
    path: Path | None
    modified: float | None


def installed_models() -> list[InstalledModel]:
    """Built-in models first, then those of the Hugging Face cache by repository."""
    models = []
    for builtin in BUILTINS.values():
        here = builtin.path.is_file()
        models.append(
            InstalledModel(
                builtin.name,
                quant_tag(builtin.member),
                builtin.size,
                builtin.path if here else None,
                builtin.path.stat().st_mtime if here else None,
            )
        )
    for cached in cached_models():
        models.append(
            InstalledModel(
                str(cached.reference), cached.quant, cached.size, cached.path, cached.modified
            )
        )
    return models
