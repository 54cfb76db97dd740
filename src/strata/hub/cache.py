"""The Hugging Face cache on this machine: find, list and remove models in its standard layout.

Layout: ``models--user--repo/{blobs/<etag>, refs/<revision>, snapshots/<commit>/<file>}``, where
the files of a snapshot are links to blobs (copies where links are impossible).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from strata.hub.downloads import DownloadError, ModelNotFound
from strata.hub.repository_files import (
    choose_gguf,
    choose_gguf_file,
    choose_safetensors,
    gguf_sets,
    needs_index,
)
from strata.records import dataclass

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
# An index lists names only; anything larger is no index.
_INDEX_LIMIT = 64 * 1024 * 1024
_CHUNK = 1 << 20


@dataclass(frozen=True)
class HubRef:
    """A repository, and what of it: a quant name, or one file; at a branch, tag or commit."""

    repo: str
    quant: str | None = None
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        text = self.repo + (f"/{self.file}" if self.file else "")
        text += f":{self.quant}" if self.quant else ""
        return text + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class CachedModel:
    """A complete model in the cache. Size in bytes, modified in seconds since 1970."""

    reference: HubRef
    quant: str | None
    files: tuple[Path, ...]
    path: Path
    size: int
    modified: float


def repository_folder(repo: str) -> Path:
    """The folder of a repository in the cache that HF_HOME and HF_HUB_CACHE choose."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def find_snapshot(repo: str, revision: str | None) -> Path | None:
    """The snapshot of a branch, a tag, or a commit (its first seven digits are enough)."""
    folder = repository_folder(repo)
    name = revision or "main"
    ref = folder / "refs" / name
    try:
        commit = ref.read_text().strip()
    except (OSError, ValueError):
        commit = name
    if not _COMMIT.fullmatch(commit):
        return None
    found = sorted((folder / "snapshots").glob(f"{commit}*"))
    return found[0] if len(found) == 1 else None


def snapshot_sizes(snapshot: Path) -> dict[str, int]:
    """Name (with ``/``) and bytes of every file that is really there."""
    return {
        path.relative_to(snapshot).as_posix(): path.stat().st_size
        for path in snapshot.rglob("*")
        if path.is_file()
    }


def select_files(
    reference: HubRef, sizes: dict[str, int], read: Callable[[str], Path]
) -> tuple[str, ...]:
    """The names that ``reference`` means among ``sizes``; a GGUF model's first part comes first.

    ``read`` gives the path of a file that has to be looked into before the choice can be made.
    Raises ModelNotFound when nothing fits, or when more than one model does.
    """
    sets = gguf_sets(sizes)
    if reference.file is not None:
        return choose_gguf_file(sets, reference.file, reference.repo).files
    if sets:
        return choose_gguf(sets, reference.quant, reference.repo).files
    if reference.quant is not None:
        raise ModelNotFound(f"{reference.repo} holds no complete GGUF model to choose from")
    index = needs_index(sizes)
    names = choose_safetensors(sizes, None if index is None else indexed_shards(read(index)))
    if names is None:
        raise ModelNotFound(
            f"{reference.repo} holds no model that Strata reads: "
            "neither a .gguf file nor config.json with .safetensors"
        )
    return tuple(names)


def entry_path(snapshot: Path, names: tuple[str, ...]) -> Path:
    """What ``open_model`` is given: the (first) GGUF file, or the directory of the snapshot."""
    return snapshot / names[0] if names[0].lower().endswith(".gguf") else snapshot


def indexed_shards(index: Path) -> set[str]:
    """The shards that a ``model.safetensors.index.json`` names; DownloadError if it is none."""
    try:
        if index.stat().st_size > _INDEX_LIMIT:
            raise ValueError("larger than any index")
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(isinstance(shard, str) for shard in shards):
            raise ValueError("a shard's name is no string")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{index} is not an index of safetensors shards: {error}") from error
    return shards


def find_cached(reference: HubRef) -> Path | None:
    """Path of the model if the cache holds all of it, without a look at the network."""
    snapshot = find_snapshot(reference.repo, reference.revision)
    if snapshot is None:
        return None
    try:
        names = select_files(reference, snapshot_sizes(snapshot), lambda name: snapshot / name)
    except ModelNotFound:
        return None
    return entry_path(snapshot, names)


def cached_models() -> Iterator[CachedModel]:
    """Every complete model in the cache, newest snapshot first within a repository."""
    for folder in sorted(repository_folder("*").parent.glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        main = find_snapshot(repo, None)
        snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
        snapshots.sort(key=lambda path: (path == main, path.stat().st_mtime), reverse=True)
        seen: set[frozenset[Path]] = set()
        for snapshot in snapshots:
            revision = None if snapshot == main else snapshot.name[:12]
            for model in _models_in(repo, revision, snapshot):
                # The same blobs under a later commit are the same model.
                blobs = frozenset(path.resolve() for path in model.files)
                if blobs not in seen:
                    seen.add(blobs)
                    yield model


def _models_in(repo: str, revision: str | None, snapshot: Path) -> Iterator[CachedModel]:
    sizes = snapshot_sizes(snapshot)
    sets = gguf_sets(sizes)
    quants = [found.quant for found in sets]
    for found in sets:
        unique = found.quant is not None and quants.count(found.quant) == 1
        reference = (
            HubRef(repo, quant=found.quant, revision=revision)
            if unique
            else HubRef(repo, revision=revision, file=found.files[0])
        )
        yield _cached(reference, found.quant, snapshot, found.files, found.size)
    if not sets:
        reference = HubRef(repo, revision=revision)
        try:
            names = select_files(reference, sizes, lambda name: snapshot / name)
        except (ModelNotFound, DownloadError):
            return
        yield _cached(reference, None, snapshot, names, sum(sizes[name] for name in names))


def _cached(
    reference: HubRef, quant: str | None, snapshot: Path, names: tuple[str, ...], size: int
) -> CachedModel:
    files = tuple(snapshot / name for name in names)
    modified = max(path.stat().st_mtime for path in files)
    return CachedModel(reference, quant, files, entry_path(snapshot, names), size, modified)


def blob_digest(etag: str, size: int | None) -> hashlib._Hash | None:
    """A fresh digest of the kind that names the blob ``etag``; None if it is named by no checksum.

    Large files are named by their SHA-256, small ones by git's SHA-1 of a header and the file.
    """
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return hashlib.sha256()
    if re.fullmatch(r"[0-9a-f]{40}", etag) and size is not None:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def verify_cached(reference: HubRef) -> None:
    """Read the cached files of ``reference`` and compare their checksums with their blobs' names.

    A damaged file is deleted and DownloadError raised, so that the next pull fetches it again.
    """
    snapshot = find_snapshot(reference.repo, reference.revision)
    if snapshot is None:
        raise ModelNotFound(f"{reference} is not in the cache")
    for name in select_files(reference, snapshot_sizes(snapshot), lambda name: snapshot / name):
        blob = (snapshot / name).resolve()
        digest = blob_digest(blob.name, blob.stat().st_size)
        if digest is None:
            continue
        with blob.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != blob.name:
            (snapshot / name).unlink()
            blob.unlink(missing_ok=True)
            raise DownloadError(
                f"{name} of {reference.repo} is damaged on this disk and was deleted; "
                f"run `strata pull {reference}` to fetch it again"
            )


@dataclass(frozen=True)
class Removal:
    """What ``remove`` would delete: folders and files of one repository, and the bytes it frees."""

    what: str
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    freed: int


def plan_removal(reference: HubRef) -> Removal:
    """What has to go for ``reference``: the repository, one revision of it, or one GGUF model.

    A blob goes only if no snapshot that stays refers to it. Raises ModelNotFound when the cache
    holds nothing of the kind.
    """
    folder = repository_folder(reference.repo)
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    if reference.revision is not None:
        chosen = find_snapshot(reference.repo, reference.revision)
        snapshots = [chosen] if chosen is not None else []
    links = [link for snapshot in snapshots for link in _links_of(reference, snapshot)]
    if not links and not (folder.is_dir() and reference == HubRef(reference.repo)):
        raise ModelNotFound(f"{reference} is not in the cache {folder.parent}")
    kept = [link for link in _all_links(folder) if link not in set(links)]
    if not any(link.is_file() for link in kept):
        # Nothing of use would stay: the folder goes, with unfinished downloads and refs.
        blobs = [path for path in (folder / "blobs").glob("*") if path.is_file()]
        locks = folder.parent / ".locks" / folder.name
        freed = sum(path.stat().st_size for path in blobs)
        return Removal(str(reference), (folder, locks), (), freed)
    still_used = {link.resolve() for link in kept}
    blobs = sorted({link.resolve() for link in links} - still_used - set(links))
    freed = sum(path.stat().st_size for path in {link.resolve() for link in links} - still_used)
    emptied = [
        snapshot for snapshot in snapshots if not any(snapshot in link.parents for link in kept)
    ]
    refs = [
        ref
        for ref in (folder / "refs").rglob("*")
        if ref.is_file() and ref.read_text().strip() in {snapshot.name for snapshot in emptied}
    ]
    return Removal(str(reference), tuple(emptied), (*links, *blobs, *refs), freed)


def remove(removal: Removal) -> None:
    """Delete what ``plan_removal`` found: links first, so that a stop half-way leaves no lie."""
    for path in removal.files:
        path.unlink(missing_ok=True)
    for folder in removal.folders:
        if folder.exists():
            shutil.rmtree(folder)


def _all_links(folder: Path) -> list[Path]:
    return [path for path in (folder / "snapshots").rglob("*") if not path.is_dir()]


def _links_of(reference: HubRef, snapshot: Path) -> list[Path]:
    if reference.quant is None and reference.file is None:
        return [path for path in snapshot.rglob("*") if not path.is_dir()]
    try:
        names = select_files(reference, snapshot_sizes(snapshot), lambda name: snapshot / name)
    except ModelNotFound:
        return []
    return [snapshot / name for name in names]
