"""The header of a model on the hub, by ranged requests: some megabytes of a file of any size."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from strata.formats import safetensors
from strata.formats.disk_file import DiskFile
from strata.formats.errors import DuplicateTensorError, ShortReadError, shown
from strata.formats.foreign import present_foreign
from strata.formats.fp8 import present
from strata.formats.gguf import read_header
from strata.formats.header_only import HeaderOnly
from strata.formats.huggingface import CONFIG
from strata.formats.json_text import parse_object
from strata.formats.tensor_info import TensorInfo
from strata.hub.cache import HubRef, select_files
from strata.hub.client import TIMEOUT_S, Listing, explained, list_files
from strata.hub.downloads import DownloadError

_WHOLE_FILE_LIMIT = 64 << 20


def remote_header(reference: HubRef) -> HeaderOnly:
    """The header of the model that ``reference`` names on the hub; nothing is kept on this disk.

    Raises as ``resolve_hub`` does, and a FormatError for a header that is not one.
    """
    with explained(reference):
        listing = list_files(reference)
        with tempfile.TemporaryDirectory() as scratch:

            def read(name: str) -> Path:
                # Only an index of shards is ever asked for.
                path = Path(scratch) / PurePosixPath(name).name
                path.write_bytes(_whole(reference, listing, name))
                return path

            names = select_files(reference, listing.sizes, read)
        if names[0].lower().endswith(".gguf"):
            return _gguf(reference, listing, names)
        return _huggingface(reference, listing, names)


def _gguf(reference: HubRef, listing: Listing, names: tuple[str, ...]) -> HeaderOnly:
    headers = [read_header(_RemoteFile(reference, listing, name)) for name in names]
    tensors = _merged([header.tensors for header in headers])
    size = sum(listing.sizes[name] for name in names)
    return HeaderOnly("gguf", _path(reference, names[0]), headers[0].metadata, tensors, size)


def _huggingface(reference: HubRef, listing: Listing, names: tuple[str, ...]) -> HeaderOnly:
    where = f"{reference}/{CONFIG}"
    config: dict[str, Any] = parse_object(_whole(reference, listing, CONFIG), where)
    shards = [name for name in names if name.endswith(".safetensors")]
    stored = _merged(
        [safetensors.read_header(_RemoteFile(reference, listing, name)) for name in shards]
    )
    stored, _ = present_foreign(stored, config, str(reference))
    tensors, _ = present(stored, config, str(reference))
    size = sum(listing.sizes[name] for name in shards)
    return HeaderOnly("huggingface", Path(str(reference)), config, tensors, size)


def _merged(parts: list[dict[str, TensorInfo]]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.items():
            if name in tensors:
                raise DuplicateTensorError(
                    f"{info.path}: the tensor {shown(name)} is also in {tensors[name].path}"
                )
            tensors[name] = info
    return tensors


def _path(reference: HubRef, name: str) -> Path:
    return Path(reference.repo) / name


def _whole(reference: HubRef, listing: Listing, name: str) -> bytes:
    if listing.sizes[name] > _WHOLE_FILE_LIMIT:
        raise DownloadError(f"{name} of {reference.repo} is too large for what it should be")
    file = _RemoteFile(reference, listing, name)
    return file.read(0, file.size)


class _RemoteFile(DiskFile):
    """A file of a repository, each read of which is one request."""

    def __init__(self, reference: HubRef, listing: Listing, name: str) -> None:
        self.path = _path(reference, name)
        self.size = listing.sizes[name]
        self._fd = -1
        self._repo, self._name, self._commit = reference.repo, name, listing.commit

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if not buffer:
            return
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        url = hf_hub_url(self._repo, self._name, revision=self._commit)
        # Compression would make the range mean other bytes.
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={offset}-{offset + len(buffer) - 1}",
            "Accept-Encoding": "identity",
        }
        response = get_session().get(url, headers=headers, timeout=TIMEOUT_S)
        hf_raise_for_status(response)
        data = response.content
        # A server that knows no ranges sends everything.
        if response.status_code == 200 and len(data) == self.size:
            data = data[offset : offset + len(buffer)]
        if len(data) != len(buffer):
            raise ShortReadError(
                f"{self.path}: the hub sent {len(data)} bytes where {len(buffer)} were asked for"
            )
        buffer[:] = data

    def close(self) -> None:
        """Nothing is held."""
