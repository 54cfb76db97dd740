"""``/v1/batches``: many requests in a file, answered when there is time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from strata.server.bodies import Asked
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.openai import chat, completions
from strata.server.openai.files import page_of, store_of
from strata.server.replies import Reply
from strata.server.service import Service

if TYPE_CHECKING:
    from strata.server.batches import Batches

ENDPOINTS = (chat.PATH, completions.PATH)
"""What the requests of a batch may ask."""

_PAGE = 100

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class BatchRequest(Asked):
    """A batch of the requests in a file."""

    idle: ClassVar[frozenset[str]] = frozenset(("output_expires_after",))

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class RequestCounts(BaseModel):
    """How far a batch has come."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """A batch, and when it came to where it is (seconds since 1970)."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "cancelling",
        "cancelled",
    ]
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None
    error_file_id: str | None
    errors: dict[str, Any] | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Some batches, the newest first."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    def batches() -> Batches:
        store_of(service)
        assert service.batches is not None
        return service.batches

    @routes.post("/v1/batches", response_model=Batch, responses=errors)
    async def create(body: BatchRequest) -> Reply:
        """Answer the requests in a file, one batch after the other, beside those who wait."""
        if body.endpoint not in ENDPOINTS:
            raise ApiError(400, f"a batch asks {' or '.join(ENDPOINTS)}", param="endpoint")
        return Reply(await batches().create(body.model_dump()))

    @routes.get("/v1/batches", response_model=BatchList, responses=errors)
    async def list_batches(
        after: str | None = None, limit: Annotated[int, Query(ge=1, le=_PAGE)] = 20
    ) -> Reply:
        """Batches, the newest first."""
        of, store = batches(), store_of(service)
        found = await asyncio.to_thread(store.ids, "batch")
        return Reply(await page_of(found, after, limit, store, lambda id: of.told(store.batch(id))))

    @routes.get("/v1/batches/{id}", response_model=Batch, responses=errors)
    async def retrieve(id: str) -> Reply:
        """A batch, and how far it has come."""
        of = batches()
        return Reply(of.told(store_of(service).batch(id)))

    @routes.post("/v1/batches/{id}/cancel", response_model=Batch, responses=errors)
    async def cancel(id: str) -> Reply:
        """Answer no more of a batch; what was answered is kept."""
        return Reply(batches().cancel(id))
