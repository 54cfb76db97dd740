"""Downloads from the Hugging Face hub into its own cache layout, resumable and checked.

The client library finds repositories, tokens and the cache. Newer versions of it start a broken
download again from nothing, so the bytes of a file are fetched here, into the same
``blobs/<etag>.incomplete`` that older versions resume, and the library links the finished blob.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, cast

from strata.errors import StrataError
from strata.formats.writing import is_disk_full
from strata.hub.cache import (
    HubRef,
    blob_digest,
    entry_path,
    find_cached,
    find_snapshot,
    repository_folder,
    select_files,
    snapshot_sizes,
)
from strata.hub.downloads import (
    DownloadError,
    ModelNotFound,
    Progress,
    exclusive,
    require_free_space,
)
from strata.hub.repository_files import refuse_unsafe
from strata.records import dataclass

_CHUNK = 1 << 20
TIMEOUT_S = 30.0
# The hub serves larger files through its own storage protocol only, which the library speaks.
_LARGEST_OVER_HTTP = 50 * 10**9
# The hub names blobs by SHA-256 or git's SHA-1; another name must at least be a plain file name.
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit: name -> bytes, and name -> expected blob name."""

    commit: str
    sizes: dict[str, int]
    etags: dict[str, str]


def resolve_hub(
    reference: HubRef,
    *,
    offline: bool | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Path of the model that ``reference`` names, from the cache, else from the hub.

    A complete copy in the cache is used without asking the hub, unless ``refresh``. ``offline``
    forbids the network (None: as HF_HUB_OFFLINE says). Raises ModelNotFound when there is no such
    model, repository or revision, and DownloadError for everything that goes wrong on the way.
    """
    from huggingface_hub import constants

    if offline is None:
        offline = constants.HF_HUB_OFFLINE
    if offline or not refresh:
        cached = find_cached(reference)
        if cached is not None:
            return cached
    if offline:
        raise _not_cached(reference)
    return _fetch(reference, progress)


def _not_cached(reference: HubRef) -> ModelNotFound:
    snapshot = find_snapshot(reference.repo, reference.revision)
    if snapshot is not None:
        try:
            select_files(reference, snapshot_sizes(snapshot), lambda name: snapshot / name)
        except ModelNotFound as error:
            return ModelNotFound(
                f"of what is on this machine, {error}; `strata pull` may find more"
            )
    return ModelNotFound(
        f"{reference} is not on this machine (not in {repository_folder(reference.repo).parent}); "
        f"run `strata pull {reference}` with a connection"
    )


def _fetch(reference: HubRef, progress: Progress | None) -> Path:
    folder = repository_folder(reference.repo)
    with explained(reference):
        listing = list_files(reference)
        snapshot = folder / "snapshots" / listing.commit

        def read(name: str) -> Path:
            _download_file(reference.repo, name, listing, None)
            return snapshot / name

        names = select_files(reference, listing.sizes, read)
        missing = sum(_bytes_missing(folder, listing, name) for name in names)
        require_free_space(folder, missing, f"downloading {reference}")
        for name in names:
            _download_file(reference.repo, name, listing, progress)
        # Only now, so that a reference to a branch never means a half-downloaded snapshot.
        _write_ref(folder, reference.revision or "main", listing.commit)
    return entry_path(snapshot, names)


def list_files(reference: HubRef) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(
        reference.repo, revision=reference.revision, files_metadata=True, timeout=TIMEOUT_S
    )
    commit = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise DownloadError(f"the hub named no commit for {reference.repo}; is HF_ENDPOINT a hub?")
    siblings = info.siblings or []
    refuse_unsafe(sibling.rfilename for sibling in siblings)
    return Listing(
        commit,
        {sibling.rfilename: sibling.size or 0 for sibling in siblings},
        {
            sibling.rfilename: (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
            for sibling in siblings
        },
    )


def _bytes_missing(folder: Path, listing: Listing, name: str) -> int:
    etag = listing.etags[name]
    if (folder / "snapshots" / listing.commit / name).exists():
        return 0
    if not _ETAG.fullmatch(etag):
        return listing.sizes[name]
    blob = folder / "blobs" / etag
    if blob.exists():
        return 0
    partial = _partial(blob)
    return listing.sizes[name] - (partial.stat().st_size if partial.exists() else 0)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _download_file(repo: str, name: str, listing: Listing, progress: Progress | None) -> None:
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
    )

    folder = repository_folder(repo)
    if (folder / "snapshots" / listing.commit / name).exists():
        return
    url = hf_hub_url(repo, name, revision=listing.commit)
    metadata = get_hf_file_metadata(url, timeout=TIMEOUT_S)
    etag, size = metadata.etag, metadata.size
    if etag is None or not _ETAG.fullmatch(etag):
        raise DownloadError(f"the hub gave no usable ETag for {name} of {repo}")
    # What is too large for plain HTTP the library fetches itself, and draws its own bar.
    by_library = size is not None and size > _LARGEST_OVER_HTTP
    if not by_library:
        blob = folder / "blobs" / etag
        lock = folder.parent / ".locks" / folder.name / f"{etag}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(lock):
            if not blob.exists():
                _download_blob(url, blob, size, name, progress)
    with nullcontext() if by_library and progress is not None else _library_bars_off():
        hf_hub_download(repo, name, revision=listing.commit)


def _download_blob(
    url: str, blob: Path, size: int | None, name: str, progress: Progress | None
) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    partial = _partial(blob)
    if size is not None and partial.exists() and partial.stat().st_size > size:
        partial.unlink()
    # Compression would make the ranges of a resumed download mean other bytes.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    with partial.open("a+b") as file:
        sink = _CheckedFile(file, blob.name, size, name, progress)
        with _library_bars_off():
            http_get(
                url,
                cast(BinaryIO, sink),
                resume_size=sink.tell(),
                headers=headers,
                expected_size=size,
            )
        file.flush()
        os.fsync(file.fileno())
        intact = sink.is_intact()
    if not intact:
        partial.unlink()
        raise DownloadError(
            f"{name} arrived with another checksum than the hub announced; it was deleted, "
            "download it again"
        )
    os.replace(partial, blob)


class _CheckedFile:
    """The part of a binary file that ``http_get`` uses, hashing and counting what is written."""

    def __init__(
        self, file: BinaryIO, etag: str, size: int | None, name: str, progress: Progress | None
    ) -> None:
        self._file, self._etag, self._size = file, etag, size
        self._name, self._progress = name, progress
        self._at = file.seek(0, os.SEEK_END)
        self._hash_existing()

    def tell(self) -> int:
        return self._at

    def write(self, data: bytes) -> int:
        self._file.write(data)
        if self._digest is not None:
            self._digest.update(data)
        self._at += len(data)
        self._tell_progress()
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._file.seek(offset, whence)
        return self._at

    def truncate(self) -> int:
        """Cut at the current position: the server began again from an earlier byte."""
        self._file.truncate(self._at)
        self._hash_existing()
        return self._at

    def is_intact(self) -> bool:
        """Whether the content has the checksum by which its blob is named, if it is."""
        return self._digest is None or self._digest.hexdigest() == self._etag

    def _hash_existing(self) -> None:
        self._digest = blob_digest(self._etag, self._size)
        self._file.seek(0)
        while self._digest is not None and (chunk := self._file.read(_CHUNK)):
            self._digest.update(chunk)
        self._file.seek(self._at)
        self._tell_progress()

    def _tell_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._name, self._at, self._size)


@contextmanager
def _library_bars_off() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    group = "huggingface_hub"
    was_off = are_progress_bars_disabled(group)
    if not was_off:
        disable_progress_bars(group)
    try:
        yield
    finally:
        if not was_off:
            enable_progress_bars(group)


def _write_ref(folder: Path, revision: str, commit: str) -> None:
    if len(revision) >= 7 and commit.startswith(revision):
        return  # a commit needs no ref to itself
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    scratch = ref.with_name(f"{ref.name}.{os.getpid()}")
    scratch.write_text(commit)
    os.replace(scratch, ref)


@contextmanager
def explained(reference: HubRef) -> Iterator[None]:
    """Turn every fault of the client library into one line that says what to do."""
    try:
        yield
    except StrataError:
        raise
    except Exception as error:
        told = _explain(reference, error)
        if told is None:
            raise
        raise told from error


def _explain(reference: HubRef, error: Exception) -> StrataError | None:
    from huggingface_hub import errors, get_token

    repo = reference.repo
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of "
            "the account that accepted them"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision {reference.revision!r}")
    # To somebody without a token the hub gives one answer for absent and for private ones.
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not get_token()):
        return ModelNotFound(
            f"there is no repository {repo}, or it is private: check the spelling, or set "
            "HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ModelNotFound(f"a file of {repo} is gone from the hub")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFound(f"{reference} is not in the cache and HF_HUB_OFFLINE is set")
    if status in (401, 403):
        return DownloadError(
            f"the hub refuses access to {repo} ({status}): set HF_TOKEN to a valid token "
            "that may read it"
        )
    if status is not None:
        return DownloadError(f"the hub answered {status} for {repo}; try again later")
    if isinstance(error, errors.HFValidationError):
        return ModelNotFound(f"{repo!r} cannot be the name of a repository")
    # The client has been built on requests, httpx and httpx2 in turn.
    if type(error).__module__.partition(".")[0] in ("requests", "urllib3", "httpx", "httpx2"):
        return DownloadError(
            f"cannot reach the hub for {repo}: {error}; with a connection, "
            f"`strata pull {reference}` downloads it (what has arrived is kept)"
        )
    if isinstance(error, OSError) and is_disk_full(error):
        return DownloadError(
            f"the disk is full: {repo} does not fit into {repository_folder(repo).parent}; "
            "make room there or set HF_HOME to a larger disk"
        )
    if isinstance(error, OSError) and error.errno is None:
        # This is how the library says that a file ended early.
        return DownloadError(
            f"the download of {repo} broke off; run it again to go on where it stopped"
        )
    return None
