"""``/v1/files``: uploads for batches, and what came of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import FileResponse, Response

from strata.server.admission import SHARE, UNCOUNTED
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.file_store import FileStore, NewFile
from strata.server.guard import UPLOADS
from strata.server.replies import Reply
from strata.server.service import Service

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartParser

# What is wrong with a form its sender is told; a line of the log for each would fill that.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

PURPOSES = ("batch", "user_data", "evals")
"""What a client may say a file is for; only those for batches are used."""

_FIELD_BYTES = 512
_HEADER_BYTES = 4096
_PAGE = 10_000
_PAGE_BYTES = 64 << 10
"""Of what is known of the files of one list, before the last one of it."""

_COPIES = 4
"""Of that: as it is read, parsed, and told."""


class File(BaseModel):
    """A file that is kept."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(BaseModel):
    """Some files, the newest first."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


async def page_of(
    ids: list[str],
    after: str | None,
    limit: int,
    store: FileStore,
    told: Callable[[str], dict[str, Any]],
) -> dict[str, Any]:
    """The part of a list that is asked for, as OpenAI's clients go through it, or as much of that
    as one answer may have."""
    if after is not None:
        if after not in ids:
            raise ApiError(400, f"there is no {after[:64]!r} to go on after", param="after")
        ids = ids[ids.index(after) + 1 :]
    page: list[str] = []
    nbytes = 0
    while len(page) < min(limit, len(ids)) and nbytes < _PAGE_BYTES:
        nbytes += store.info_bytes(ids[len(page)])
        page.append(ids[len(page)])
    if nbytes > UNCOUNTED:
        await SHARE.get().take(_COPIES * nbytes, "the list is long (give a limit)")
    data = []
    for id in page:
        # It may have been deleted meanwhile.
        with suppress(ApiError):
            data.append(told(id))
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(ids) > len(page),
    }


def store_of(service: Service) -> FileStore:
    """Where files are kept; ApiError where they are not."""
    if service.files is None:
        raise ApiError(404, "this server keeps no files and makes no batches (--files)")
    return service.files


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    @routes.post(
        UPLOADS,
        response_model=File,
        responses=errors,
        openapi_extra={"requestBody": {"required": True, "content": _FORM}},
    )
    async def upload(request: Request) -> Reply:
        """Keep a file, sent as a form with its purpose."""
        store = store_of(service)
        await asyncio.to_thread(store.make_place)
        return Reply(await _received(request, store))

    @routes.get(UPLOADS, response_model=FileList, responses=errors)
    async def list_files(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=_PAGE)] = _PAGE,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Reply:
        """Files that are kept, the newest first."""
        store = store_of(service)
        found = await asyncio.to_thread(
            store.ids, "file", lambda info: purpose in (None, info["purpose"])
        )
        ids = found[::-1] if order == "asc" else found
        return Reply(await page_of(ids, after, limit, store, store.file))

    @routes.get("/v1/files/{id}", response_model=File, responses=errors)
    async def retrieve(id: str) -> Reply:
        """What a file is."""
        return Reply(store_of(service).file(id))

    @routes.get("/v1/files/{id}/content", responses=errors, response_class=Response)
    async def content(id: str) -> Response:
        """What is in a file."""
        return FileResponse(store_of(service).content(id), media_type="application/octet-stream")

    @routes.delete("/v1/files/{id}", response_model=FileDeleted, responses=errors)
    async def delete(id: str) -> Reply:
        """Delete a file that no batch is being made of."""
        store = store_of(service)
        assert service.batches is not None
        await asyncio.to_thread(service.batches.check_unused, id)
        await asyncio.to_thread(store.delete_file, id)
        return Reply({"id": id, "object": "file", "deleted": True})


_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {
                "purpose": {"type": "string", "enum": list(PURPOSES)},
                "file": {"type": "string", "format": "binary"},
            },
        }
    }
}


async def _received(request: Request, store: FileStore) -> dict[str, Any]:
    """The file of a form, written as it comes."""
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import parse_options_header
    except ModuleNotFoundError:
        raise ApiError(
            503, "files need the package python-multipart: pip install 'strata-llm[server]'"
        ) from None
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ApiError(400, "a file is sent as multipart/form-data")
    with store.new("") as made:
        form = _Form(made)
        try:
            parser = form.parser(options[b"boundary"])
            async for chunk in _chunks(request):
                parser.write(chunk)
                # What came is on its way to the disk; nobody waits for that longer than for this.
                await asyncio.sleep(0)
            parser.finalize()
        except FormParserError as error:
            raise ApiError(400, f"the form cannot be read: {error}") from None
        if not form.ended:
            raise ApiError(400, "the form ends too early")
        purpose = form.fields.get("purpose", "")
        if purpose not in PURPOSES:
            raise ApiError(400, f"purpose is one of {', '.join(PURPOSES)}", param="purpose")
        if form.filename is None:
            raise ApiError(400, "the form has no file", param="file")
        made.purpose = purpose
        return await asyncio.to_thread(made.finish, form.filename)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


class _Form:
    """Takes the parts of a form: fields into memory, the one file to the disk."""

    def __init__(self, made: NewFile) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.ended = False
        self._made = made
        self._header = [b"", b""]
        self._name, self._value, self._is_file = "", b"", False

    def parser(self, boundary: bytes) -> MultipartParser:
        """What reads the form and tells of its parts."""
        from python_multipart.multipart import MultipartParser

        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._head(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._head(1, data[start:end]),
                "on_header_end": self._head_end,
                "on_part_data": lambda data, start, end: self._data(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def _begin(self) -> None:
        self._header = [b"", b""]
        self._name, self._value, self._is_file = "", b"", False

    def _head(self, part: int, data: bytes) -> None:
        self._header[part] += data
        if len(self._header[part]) > _HEADER_BYTES:
            raise ApiError(400, "a header of the form is too long")

    def _head_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        field, value = self._header
        self._header = [b"", b""]
        if field.lower() != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            if self.filename is not None or self._name != "file":
                raise ApiError(400, "a form has one file, called file", param="file")
            self._is_file = True
            name = options[b"filename"].decode("utf-8", "replace")
            self.filename = name.replace("\\", "/").rpartition("/")[2][:255] or "file"

    def _data(self, data: bytes) -> None:
        if self._is_file:
            self._made.write(data)
            return
        self._value += data
        if len(self._value) > _FIELD_BYTES:
            raise ApiError(400, f"a field of the form has more than {_FIELD_BYTES} bytes")

    def _end(self) -> None:
        if not self._is_file:
            if len(self.fields) == 16:
                raise ApiError(400, "the form has too many fields")
            self.fields[self._name[:64]] = self._value.decode("utf-8", "replace")

    def _all(self) -> None:
        self.ended = True
