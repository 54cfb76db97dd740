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
from strata.hub.cache import HubRef, cached_models, find_snapshot
from strata.hub.client import resolve_hub
from strata.hub.downloads import ModelNotFound, Progress
from strata.hub.known_names import known_names, known_repository, split_name
from strata.hub.other_stores import lm_studio_models, ollama_model
from strata.hub.repository_files import part_name, quant_tag, split_part

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
        return Builtin(builtin) if builtin else _elsewhere(reference)
    path = Path(reference).expanduser()
    # A folder that merely shares its name with a built-in model does not hide it.
    if _exists(path) and not (builtin and not path.is_file() and not _is_model_directory(path)):
        return LocalPath(path)
    if builtin:
        return Builtin(builtin)
    hub = _hub_part(reference)
    if hub is None:
        if _looks_like_path(reference, path):
            raise ModelNotFound(f"there is no file {reference}{_near_files(path)}")
        hub = reference
    return _in_hub(reference, hub) if "/" in hub else _by_name(reference, path)


def _elsewhere(reference: str) -> HubRef:
    """What a reference means that is of the hub."""
    hub = _hub_part(reference) or reference
    if "/" in hub:
        return _in_hub(reference, hub)
    name, quant = split_name(reference)
    repo = known_repository(name)
    if repo is None:
        raise ModelNotFound(_unknown_name(reference, None))
    return HubRef(repo, None if quant is None else quant.upper())


def _in_hub(reference: str, hub: str) -> HubRef:
    """A repository, and what of it."""
    match = _HUB.fullmatch(hub)
    if match is None or (match["before"] and match["after"]) or _is_unsafe(match):
        raise UsageError(
            f"{reference!r} is not a model reference; write a built-in name, a path, user/repo, "
            "user/repo:QUANT or user/repo/file.gguf"
        )
    if match["file"] and match["quant"]:
        raise UsageError(f"{reference!r} names a file and a quantisation; give one of them")
    return HubRef(match["repo"], match["quant"], match["before"] or match["after"], match["file"])


def meaning(reference: str) -> str | None:
    """What a name from a table or another program stands for, to be told; None for what says it
    itself. Raises as ``parse``."""
    parsed = parse(reference)
    if "/" in reference or _exists(Path(reference)):
        return None
    if isinstance(parsed, HubRef):
        return f"{reference} is {parsed} of the Hugging Face hub"
    return f"{reference} is {parsed.path}" if isinstance(parsed, LocalPath) else None


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


def _builtin_name(reference: str) -> str:
    """The built-in model that is meant; "" if none is."""
    name, _, tag = reference.lower().partition(":")
    return name if name in BUILTINS and tag in ("", "latest", BUILTINS[name].tag) else ""


def _by_name(reference: str, path: Path) -> Reference:
    """A model by a name as Ollama's users write it, or its repository's last part: what another
    program or the hub's cache has of it, else where it is usually downloaded from."""
    if found := ollama_model(reference):
        return LocalPath(found)
    name, quant = split_name(reference)
    repo = known_repository(name)
    names = {name, "" if repo is None else _bare(repo)} - {""}
    if repo is None or not find_snapshot(repo, None):
        for cached in cached_models():
            if _bare(cached.reference.repo) in names and quant in (None, _lower(cached.quant)):
                return cached.reference
        for folder, file in lm_studio_models():
            if _bare(folder) in names and quant in (None, _lower(quant_tag(file.name))):
                return LocalPath(file)
    if repo is None:
        raise ModelNotFound(_unknown_name(reference, path))
    return HubRef(repo, None if quant is None else quant.upper())


def _bare(repo: str) -> str:
    """A repository's own name, to be compared with one that somebody typed."""
    return split_name(repo.rpartition("/")[2])[0]


def _lower(text: str | None) -> str:
    return (text or "").lower()


def _unknown_name(reference: str, path: Path | None) -> str:
    near = difflib.get_close_matches(reference.lower(), [*BUILTINS, *known_names()], n=1)
    hint = f"; did you mean {near[0]}?" if near else _near_files(path) if path else ""
    return (
        f"there is no model {reference!r}: give the path of a file, a repository of the Hugging "
        f"Face hub as user/repo, or a name such as {', '.join(BUILTINS)} or llama3.2:1b{hint}"
    )
