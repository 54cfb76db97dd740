"""What a person writes to name a model, and the path it stands for."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from strata.errors import UsageError
from strata.hub.builtin import BUILTINS, fetch_builtin
from strata.hub.downloads import ModelNotFound, Progress
from strata.hub.repository_files import part_name, split_part
from strata.records import dataclass

if TYPE_CHECKING:
    from strata.hub.cache import HubRef


@dataclass(frozen=True)
class Builtin:
    """A model known by a bare name."""

    name: str


@dataclass(frozen=True)
class LocalPath:
    """A file or directory of this machine."""

    path: Path


Reference: TypeAlias = "Builtin | LocalPath | HubRef"


def parse(reference: str, *, local: bool = True) -> Reference:
    """What ``reference`` names. A file or directory that exists wins over every other meaning,
    unless nothing ``local`` is meant: then no path is looked at, nor are names of files told.

    Forms: a built-in name, a path, ``user/repo``, ``user/repo:QUANT``, ``user/repo/file.gguf``,
    each of the last three with an optional ``@revision`` and with an optional ``hf.co/``,
    ``huggingface.co/`` or their https address in front; and names such as ``llama3.2:1b`` (see
    ``known_names``), also of models that Ollama or LM Studio have here. Raises UsageError for what
    cannot be read as any of these and ModelNotFound, with the nearest names, for a path or a name
    that does not exist.
    """
    if not reference or "\0" in reference:
        raise UsageError("a model reference must not be empty or hold a zero byte")
    builtin = _builtin_name(reference)
    if not local:
        if builtin:
            return Builtin(builtin)
        from strata.hub.names import of_hub

        return of_hub(reference)
    path = Path(reference).expanduser()
    # A folder that merely shares its name with a built-in model does not hide it.
    if _exists(path) and not (builtin and not path.is_file() and not _is_model_directory(path)):
        return LocalPath(path)
    if builtin:
        return Builtin(builtin)
    # Whoever gives a file waits for nothing that knows the hub and other programs' models.
    from strata.hub.names import known_elsewhere

    return known_elsewhere(reference, path)


def meaning(reference: str) -> str | None:
    """What a name from a table or another program stands for, to be told; None for what says it
    itself. Raises as ``parse``."""
    parsed = parse(reference)
    if "/" in reference or _exists(Path(reference)):
        return None
    if isinstance(parsed, Builtin):
        return None
    if isinstance(parsed, LocalPath):
        return f"{reference} is {parsed.path}"
    return f"{reference} is {parsed} of the Hugging Face hub"


def resolve(
    reference: str,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    download: bool = True,
    refresh: bool = False,
    local: bool = True,
) -> Path:
    """The path that ``open_model`` takes for ``reference``: a .gguf file or a model directory.

    Of a split GGUF it is the first part. What is not on this machine is downloaded, unless
    ``offline`` (None: as HF_HUB_OFFLINE says) or ``download`` forbid it; ``refresh`` asks the hub
    for a newer version even if the cache has one. ``local`` is as for ``parse``. Raises as
    ``parse``, plus ModelNotFound and DownloadError.
    """
    parsed = parse(reference, local=local)
    if isinstance(parsed, LocalPath):
        return _resolve_path(parsed.path)
    if isinstance(parsed, Builtin):
        return fetch_builtin(parsed.name, progress, download=download and not offline)
    from strata.hub.client import resolve_hub

    return resolve_hub(
        parsed,
        offline=True if not download else offline,
        refresh=refresh,
        progress=progress,
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_model_directory(path: Path) -> bool:
    return (path / "config.json").is_file()


def _resolve_path(path: Path) -> Path:
    if path.is_dir():
        if not _is_model_directory(path):
            found = sorted(child.name for child in path.glob("*.gguf"))
            hint = "a model is a .gguf file, or a directory with config.json and *.safetensors"
            if found:
                hint = f"it has {', '.join(found[:5])}: name one"
            raise ModelNotFound(f"the directory {path} has no config.json; {hint}")
        return path
    if split_part(path.name) is not None:
        first = path.with_name(part_name(path.name, 1))
        return first if first.is_file() else path
    return path


def near_files(path: Path) -> str:
    """What to add to a message of a file that is not there."""
    try:
        names = [child.name for child in path.parent.iterdir()]
    except OSError:
        return f" (nor the folder {path.parent})" if path.parent != Path() else ""
    near = difflib.get_close_matches(path.name, names, n=2)
    return (
        f"; did you mean {' or '.join(str(path.with_name(name)) for name in near)}?" if near else ""
    )


def _builtin_name(reference: str) -> str:
    """The built-in model that is meant; "" if none is."""
    name, _, tag = reference.lower().partition(":")
    return name if name in BUILTINS and tag in ("", "latest", BUILTINS[name].tag) else ""
