"""``POST /api/embed`` and the older ``/api/embeddings``."""

from __future__ import annotations

from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from strata.server.document import OllamaError, documented
from strata.server.embedding import embed
from strata.server.ollama.requests import OllamaRequest
from strata.server.replies import Reply, while_there
from strata.server.service import Service


class EmbedRequest(OllamaRequest):
    """``POST /api/embed``. What is beyond the context is left out unless ``truncate`` is false."""

    input: str | Annotated[list[str], Field(fail_fast=True)]
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=0)] | None = None


class OldEmbedRequest(OllamaRequest):
    """``POST /api/embeddings``."""

    prompt: str


class EmbedReply(BaseModel):
    """Vectors of length 1. Durations in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldEmbedReply(BaseModel):
    """One vector, as long as the model gives it."""

    embedding: list[float]


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OllamaError)

    @routes.post("/api/embed", response_model=EmbedReply, responses=errors)
    async def embed_all(body: EmbedRequest, request: Request) -> Response:
        """The embedding of each text."""
        service.check_model(body.model)
        started = perf_counter()
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors: list[list[float]] = []
        tokens = 0
        if texts:
            work = embed(
                service,
                texts,
                dimensions=body.dimensions or None,
                truncate=body.truncate is not False,
            )
            found = await while_there(request, work)
            vectors, tokens = found.vectors.tolist(), found.tokens
        return Reply(
            {
                "model": service.name,
                "embeddings": vectors,
                "total_duration": int((perf_counter() - started) * 1e9),
                "load_duration": 0,
                "prompt_eval_count": tokens,
            }
        )

    @routes.post("/api/embeddings", response_model=OldEmbedReply, responses=errors)
    async def embed_one(body: OldEmbedRequest, request: Request) -> Response:
        """The embedding of one text."""
        service.check_model(body.model)
        if not body.prompt:
            return Reply({"embedding": []})
        work = embed(service, [body.prompt], truncate=True, normalize=False)
        found = await while_there(request, work)
        return Reply({"embedding": found.vectors[0].tolist()})
