"""What a name means that is neither a built-in model nor a file: a repository of the hub, or a
model that another program has on this machine."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from strata.errors import UsageError
from strata.hub.builtin import BUILTINS
from strata.hub.cache import HubRef, cached_models, find_snapshot
from strata.hub.downloads import ModelNotFound
from strata.hub.known_names import known_names, known_repository, split_name
from strata.hub.other_stores import lm_studio_models, ollama_model
from strata.hub.references import LocalPath, Reference, near_files
from strata.hub.repository_files import quant_tag

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>[^:@]+\.gguf))?"
    rf"(?:@(?P<before>{_REVISION}))?(?::(?P<quant>[A-Za-z0-9._-]{{1,64}}))?"
    rf"(?:@(?P<after>{_REVISION}))?",
    re.IGNORECASE,
)


def of_hub(reference: str) -> HubRef:
    """What a reference means that is of the hub."""
    hub = _hub_part(reference) or reference
    if "/" in hub:
        return _in_hub(reference, hub)
    name, quant = split_name(reference)
    repo = known_repository(name)
    if repo is None:
        raise ModelNotFound(_unknown_name(reference, None))
    return HubRef(repo, None if quant is None else quant.upper())


def known_elsewhere(reference: str, path: Path) -> Reference:
    """What ``reference`` means where no file is at ``path``. Raises as ``references.parse``."""
    hub = _hub_part(reference)
    if hub is None:
        if _looks_like_path(reference, path):
            raise ModelNotFound(f"there is no file {reference}{near_files(path)}")
        hub = reference
    return _in_hub(reference, hub) if "/" in hub else _by_name(reference, path)


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
    hint = f"; did you mean {near[0]}?" if near else near_files(path) if path else ""
    return (
        f"there is no model {reference!r}: give the path of a file, a repository of the Hugging "
        f"Face hub as user/repo, or a name such as {', '.join(BUILTINS)} or llama3.2:1b{hint}"
    )


def _looks_like_path(reference: str, path: Path) -> bool:
    if reference.startswith(("/", "./", "../", "~", ".\\", "..\\")) or "\\" in reference:
        return True
    if not reference.lower().endswith((".gguf", ".safetensors")):
        return False
    # user/repo/file.gguf is a repository's file, unless the folder is right here.
    return reference.count("/") < 2 or path.parent.is_dir()
