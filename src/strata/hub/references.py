"""What a person writes to name a model, and the path it stands for."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from strata.errors import UsageError
from strata.hub.builtin import BUILTINS, fetch_builtin
from strata.hub.cache import HubRef
from strata.hub.client import resolve_hub
from strata.hub.downloads import ModelNotFound, Progress
from strata.hub.repository_files import part_name, split_part

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>[^:@]+\.gguf))?"
    rf"(?:@(?P<before>{_REVISION}))?(?::(?P<quant>[A-Za-z0-9._-]{{1,64}}))?"
    rf"(?:@(?P<after>{_REVISION}))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Builtin:
    """A model known by a bare name."""

    name: str


@dataclass(frozen=True)
class LocalPath:
    """A file or directory of this machine."""

    path: Path


Reference = Builtin | LocalPath | HubRef


def parse(reference: str) -> Reference:
    """What ``reference`` names. A file or directory that exists wins over every other meaning.

    Forms: a built-in name, a path, ``user/repo``, ``user/repo:QUANT``, ``user/repo/file.gguf``,
    each of the last three with an optional ``@revision`` and with an optional ``hf.co/``,
    ``huggingface.co/`` or their https address in front. Raises UsageError for what cannot be read
    as any of these and ModelNotFound, with the nearest names, for a path that does not exist.
    """
    if not reference or "\0" in reference:
        raise UsageError("a model reference must not be empty or hold a zero byte")
    path = Path(reference).expanduser()
    builtin = reference.lower() in BUILTINS
    # A folder that merely shares its name with a built-in model does not hide it.
    if _exists(path) and not (builtin and not path.is_file() and not _is_model_directory(path)):
        return LocalPath(path)
    if builtin:
        return Builtin(reference.lower())
    hub = _hub_part(reference)
    if hub is None:
        if _looks_like_path(reference, path):
            raise ModelNotFound(f"there is no file {reference}{_near_files(path)}")
        hub = reference
    if "/" not in hub:
        raise ModelNotFound(_unknown_name(reference, path))
    match = _HUB.fullmatch(hub)
    if match is None or (match["before"] and match["after"]) or _is_unsafe(match):
        raise UsageError(
            f"{reference!r} is not a model reference; write a built-in name, a path, user/repo, "
            "user/repo:QUANT or user/repo/file.gguf"
        )
    if match["file"] and match["quant"]:
        raise UsageError(f"{reference!r} names a file and a quantisation; give one of them")
    return HubRef(match["repo"], match["quant"], match["before"] or match["after"], match["file"])


def resolve(
    reference: str,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    download: bool = True,
    refresh: bool = False,
) -> Path:
    """The path that ``open_model`` takes for ``reference``: a .gguf file or a model directory.

    Of a split GGUF it is the first part. What is not on this machine is downloaded, unless
    ``offline`` (None: as HF_HUB_OFFLINE says) or ``download`` forbid it; ``refresh`` asks the hub
    for a newer version even if the cache has one. Raises as ``parse``, plus ModelNotFound and
    DownloadError.
    """
    parsed = parse(reference)
    if isinstance(parsed, LocalPath):
        return _resolve_path(parsed.path)
    if isinstance(parsed, Builtin):
        return fetch_builtin(parsed.name, progress, download=download and not offline)
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


def _hub_part(reference: str) -> str | None:
    """What follows the host of a hub address as ``user/repo...``; None if no host is named."""
    scheme, separator, _ = reference.partition("://")
    if not separator:
        host, slash, path = reference.partition("/")
        return path if slash and host.lower() in _HOSTS else None
    parts = urlsplit(reference)
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    known = {*_HOSTS, mirror.lower()} - {""}
    if scheme.lower() not in ("http", "https") or parts.netloc.lower() not in known:
        raise UsageError(
            f"{reference!r} is no address of a model repository; Strata reads {', '.join(_HOSTS)}"
        )
    path = unquote(parts.path).strip("/")
    # Addresses copied from a browser: user/repo/tree/REVISION, user/repo/resolve/REVISION/FILE.
    match = re.fullmatch(r"([^/]+/[^/]+)/(?:tree|blob|resolve)/([^/]+)(/.+)?", path)
    return f"{match[1]}{match[3] or ''}@{match[2]}" if match else path


def _is_unsafe(match: re.Match[str]) -> bool:
    pieces = re.split(r"[/\\]", "/".join(part for part in match.groups() if part))
    return any(piece in ("", ".", "..") for piece in pieces) or "--" in match["repo"]


def _looks_like_path(reference: str, path: Path) -> bool:
    if reference.startswith(("/", "./", "../", "~", ".\\", "..\\")) or "\\" in reference:
        return True
    if not reference.lower().endswith((".gguf", ".safetensors")):
        return False
    # user/repo/file.gguf is a repository's file, unless the folder is right here.
    return reference.count("/") < 2 or path.parent.is_dir()


def _near_files(path: Path) -> str:
    try:
        names = [child.name for child in path.parent.iterdir()]
    except OSError:
        return f" (nor the folder {path.parent})" if path.parent != Path() else ""
    near = difflib.get_close_matches(path.name, names, n=2)
    return (
        f"; did you mean {' or '.join(str(path.with_name(name)) for name in near)}?" if near else ""
    )


def _unknown_name(reference: str, path: Path) -> str:
    near = difflib.get_close_matches(reference.lower(), BUILTINS, n=1)
    hint = f"; did you mean {near[0]}?" if near else _near_files(path)
    return (
        f"no model {reference!r}: it is no file and no built-in model ({', '.join(BUILTINS)}), "
        f"and a repository is written user/repo{hint}"
    )
