"""``POST /v1/embeddings``, and ``/v1/rerank`` as Jina, Cohere and vLLM have it."""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from strata.errors import UsageError
from strata.server.bodies import Asked, Lenient
from strata.server.document import OpenAIError, documented
from strata.server.embedding import Embedded, embed, rank
from strata.server.replies import Reply, while_there
from strata.server.service import Service
from strata.server.settings import Unknown


class InputPart(Lenient):
    """A part of an input; only text can be read here."""

    type: Literal["text"]
    text: str


class InputObject(Lenient):
    """A text as llama-server's clients may say it."""

    prompt_string: str | None = None
    multimodal_data: list[Any] | None = None
    content: Annotated[list[InputPart], Field(fail_fast=True)] | None = None


Mixed = Annotated[list[int | str], Field(fail_fast=True)]
Inputs = str | InputObject | Annotated[list[int | str | InputObject | Mixed], Field(fail_fast=True)]
"""A text, token ids, or a list of these."""


class EmbeddingOptions(Asked):
    """How inputs are embedded."""

    idle: ClassVar[frozenset[str]] = frozenset(("user", "priority", "request_id", "input_type"))
    off: ClassVar[dict[str, tuple[Any, ...]]] = {"truncate_prompt_tokens": (-1,)}

    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    embd_normalize: int | None = None


class EmbeddingRequest(EmbeddingOptions):
    """``POST /v1/embeddings``."""

    input: Inputs


class LlamaEmbeddingRequest(EmbeddingOptions):
    """``POST /embedding``; its input may be called ``content``."""

    on_unknown: ClassVar[Unknown] = "warn"

    input: Inputs | None = None
    content: Inputs | None = None


class Embedding(BaseModel):
    """The vector of an input: numbers, or float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """All vectors."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class RankedText(Lenient):
    """A document as an object."""

    text: str


Documents = Annotated[list[str | RankedText], Field(min_length=1, fail_fast=True)]


class RerankRequest(Asked):
    """``POST /v1/rerank``; ``texts`` is the form of text-embeddings-inference."""

    on_unknown: ClassVar[Unknown] = "warn"
    idle: ClassVar[frozenset[str]] = frozenset(("max_chunks_per_doc", "max_tokens_per_doc", "user"))
    off: ClassVar[dict[str, tuple[Any, ...]]] = {"truncate": (False,), "raw_scores": (False, True)}

    model: str | None = None
    query: str
    documents: Documents | None = None
    texts: Documents | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None


class Ranked(BaseModel):
    """A document's place among those that were sent, and how well it answers: more is better."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class Ranking(BaseModel):
    """The documents, the best one first."""

    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage


class Scored(BaseModel):
    """The same as text-embeddings-inference has it, where ``texts`` were sent."""

    index: int
    score: float
    text: str | None = None


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    @routes.post("/v1/embeddings", response_model=Embeddings, responses=errors)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """The embedding of each input: as the model's file says they are made, else the mean."""
        service.check_model(body.model)
        found = await while_there(request, _embed(service, body, body.input))
        in_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _written(vector, in_base64)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = _usage(found)
        return Reply({"object": "list", "model": service.name, "data": data, "usage": usage})

    @routes.post("/embedding", include_in_schema=False)
    @routes.post("/embeddings", include_in_schema=False)
    async def llama_embeddings(body: LlamaEmbeddingRequest, request: Request) -> Response:
        """llama-server's form: a list of vectors."""
        given = body.content if body.input is None else body.input
        if given is None:
            raise UsageError('"input" or "content" must be provided')
        found = await while_there(request, _embed(service, body, given))
        vectors = enumerate(found.vectors.tolist())
        return Reply([{"index": index, "embedding": [vector]} for index, vector in vectors])

    @routes.post("/rerank", include_in_schema=False)
    @routes.post("/reranking", include_in_schema=False)
    @routes.post("/v1/reranking", include_in_schema=False)
    @routes.post("/v2/rerank", include_in_schema=False)
    @routes.post("/v1/rerank", response_model=Ranking | list[Scored], responses=errors)
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Documents by how well they answer a query: a reranker's scores, else the cosine of
        embeddings."""
        service.check_model(body.model)
        given = body.documents or body.texts
        if not given:
            raise UsageError("documents: a list of texts is expected")
        texts = [each if isinstance(each, str) else each.text for each in given]
        found = await while_there(request, rank(service, body.query, texts))
        order = sorted(range(len(texts)), key=lambda i: (-float(found.vectors[i, 0]), i))
        order = order[: body.top_n]
        scores = [float(found.vectors[i, 0]) for i in order]
        if body.documents is None:
            return Reply(
                [
                    {"index": i, "score": score, **({"text": texts[i]} if body.return_text else {})}
                    for i, score in zip(order, scores, strict=True)
                ]
            )
        results = [
            {
                "index": i,
                "relevance_score": score,
                **({"document": {"text": texts[i]}} if body.return_documents else {}),
            }
            for i, score in zip(order, scores, strict=True)
        ]
        usage = _usage(found)
        return Reply({"object": "list", "model": service.name, "results": results, "usage": usage})


async def _embed(service: Service, body: EmbeddingOptions, given: Any) -> Embedded:
    one = not isinstance(given, list) or any(isinstance(part, int) for part in given)
    inputs = [given] if one else given
    if not inputs:
        raise UsageError("input: a text is expected, or a list of texts")
    ids = [await _ids(service, each) for each in inputs]
    return await embed(
        service, ids, dimensions=body.dimensions, normalize=body.embd_normalize != -1
    )


async def _ids(service: Service, given: Any) -> str | list[int]:
    if isinstance(given, InputObject):
        if given.multimodal_data:
            raise UsageError("this server reads text only: an input has multimodal_data")
        if given.prompt_string is None and given.content is None:
            raise UsageError("input: an object has prompt_string, or content")
        return given.prompt_string or "".join(part.text for part in given.content or ())
    if isinstance(given, str):
        return given
    ids: list[int] = []
    for part in given:
        if not isinstance(part, int | str):
            raise UsageError("input: token ids stand beside texts only")
        ids += [part] if isinstance(part, int) else await service.encode(part)
    return ids


def _written(vector: Any, in_base64: bool) -> Any:
    if in_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _usage(found: Embedded) -> dict[str, int]:
    return {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
