"""``/kv``: what is kept of prompts, in memory and on disk, looked up and changed while it is used.

Requests reach what the model that runs has kept, and nothing of others; where it lies is said when
the server is started, so that none is moved by a request.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from strata.kv.store_contents import Kept, StoreContents, contents_bytes
from strata.kv.store_directory import StoreDirectory
from strata.server.admission import SHARE
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.reading import bounded_route
from strata.server.replies import Reply
from strata.server.service import Service

_COPIES = 8
"""Of a block while it is compressed and compared."""

_Id = Annotated[str, Field(min_length=4, max_length=64)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]


class LookupRequest(BaseModel):
    """A prompt, as text or token ids; ``/apply-template`` makes it of a conversation."""

    prompt: str | Annotated[list[_Token], Field(fail_fast=True)]


class Known(BaseModel):
    """Tokens of the prompt, and how many of them, from the first, would not be computed again:
    with what is in ``memory``, and with what is there or in the ``store``."""

    tokens: int
    memory: int
    store: int


class EntriesRequest(BaseModel):
    """Ids of entries, or beginnings of them; ``all`` of this model."""

    entries: Literal["all"] | Annotated[list[_Id], Field(min_length=1, max_length=1024)]


class ClearRequest(EntriesRequest):
    """Entries to be deleted; with ``memory`` what memory knows is forgotten as well."""

    memory: bool = False


class Item(BaseModel):
    """A file: ``tokens`` of one text from position ``first`` on (null: what comes before is not
    there), and ``age_s`` seconds since it was used."""

    id: str
    model: str
    first: int | None
    tokens: int
    bytes: int
    age_s: int
    pinned: bool
    compressed: bool


class Entries(BaseModel):
    """What is kept, the longest unused first, or what was changed; ``limit``: bytes that the store
    may take."""

    entries: list[Item]
    bytes: int
    limit: int


def router(service: Service) -> APIRouter:
    """These endpoints."""
    routes = APIRouter(prefix="/kv", tags=["Strata"], route_class=bounded_route(service))
    errors = documented(OpenAIError)

    def store() -> tuple[StoreDirectory, list[bytes], int]:
        """The directory, what this model's files are known by, and bytes of its largest block."""
        service.settings.check_served("kv")
        stores = service.llm.engine.kv_stores
        if not stores:
            raise ApiError(404, "no KV is kept on disk here: start the server with --kv-store")
        largest = max(each.block_nbytes for each in stores)
        return stores[0].directory, [each.identity for each in stores], largest

    async def opened(more: int = 0) -> tuple[StoreDirectory, StoreContents]:
        directory, identities, _ = store()
        need = await service.on_the_store(lambda: contents_bytes(directory, identities))
        SHARE.get().add(need + more)
        contents = await service.on_the_store(lambda: StoreContents(directory, identities))
        return directory, contents

    def told(directory: StoreDirectory, kept: list[Kept]) -> Reply:
        items = [
            Item(
                id=k.id,
                model=k.label,
                first=k.first,
                tokens=k.tokens,
                bytes=k.file.nbytes,
                age_s=k.age_s,
                pinned=k.file.pinned,
                compressed=k.compressed,
            ).model_dump()
            for k in kept
        ]
        nbytes = sum(k.file.nbytes for k in kept)
        return Reply({"entries": items, "bytes": nbytes, "limit": directory.limit})

    async def changed(body: EntriesRequest, how: str, more: int = 0) -> Reply:
        directory, contents = await opened(more)

        def work() -> list[Kept]:
            names = contents.chosen([] if body.entries == "all" else body.entries)
            before = contents.kept()
            if how == "clear":
                done = set(contents.clear(names))
                return [k for k in before if k.file.name in done]
            if how == "compress":
                done = set(contents.compress(names, lambda: not service.bridge.closing))
            else:
                wanted = contents.with_beginnings(names) if how == "pin" else names
                done = set(contents.pin(wanted, how == "pin"))
            return [k for k in contents.kept() if k.file.name in done]

        return told(directory, await service.on_the_store(work))

    @routes.get("", response_model=Entries, responses=errors)
    async def entries() -> Reply:
        """What is kept of this model's prompts on disk."""
        directory, contents = await opened()
        return told(directory, await service.on_the_store(contents.kept))

    @routes.post("/lookup", response_model=Known, responses=errors)
    async def lookup(body: LookupRequest) -> Reply:
        """How much of a prompt is known."""
        service.settings.check_served("kv")
        ids = body.prompt
        if isinstance(ids, str):
            ids = await service.encode(ids)
        memory, kept = await service.alone(lambda engine: engine.known(ids))
        return Reply({"tokens": len(ids), "memory": memory, "store": kept})

    @routes.post("/pin", response_model=Entries, responses=errors)
    async def pin(body: EntriesRequest) -> Reply:
        """Have entries stay when others are deleted for want of room, with what their texts begin
        with."""
        return await changed(body, "pin")

    @routes.post("/unpin", response_model=Entries, responses=errors)
    async def unpin(body: EntriesRequest) -> Reply:
        """Let entries go when there is no room."""
        return await changed(body, "unpin")

    @routes.post("/compress", response_model=Entries, responses=errors)
    async def compress(body: EntriesRequest) -> Reply:
        """Have entries take less room, exactly; they take longer to load then."""
        return await changed(body, "compress", _COPIES * store()[2])

    @routes.post("/clear", response_model=Entries, responses=errors)
    async def clear(body: ClearRequest) -> Reply:
        """Delete entries."""
        done = await changed(body, "clear")
        if body.memory:
            await service.alone(lambda engine: engine.forget_prefixes())
        return done

    return routes
