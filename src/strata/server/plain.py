"""Endpoints of no protocol in particular: tokens, health, figures."""

from __future__ import annotations

from array import array
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from strata.errors import UsageError
from strata.server.admission import SHARE
from strata.server.document import OpenAIError, documented
from strata.server.errors import ShuttingDown
from strata.server.reading import bounded_route
from strata.server.replies import Reply
from strata.server.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


_TOGETHER = 1 << 12
_TOKEN_BYTES = 24
"""Of an id: its number, and its digits while they are joined and sent."""


class TokenizeRequest(BaseModel):
    """Text to tokens; see ``Tokenizer.encode`` for the two choices."""

    content: str
    add_special: bool = False
    parse_special: bool = True


class Tokens(BaseModel):
    """Token ids and their number."""

    tokens: list[int]
    count: int


class DetokenizeRequest(BaseModel):
    """Tokens to text."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


class Text(BaseModel):
    """The text of tokens; bytes that are no UTF-8 are U+FFFD."""

    content: str


class Health(BaseModel):
    """Alive, and taking requests."""

    status: Literal["ok"]


def _tokens_json(tokens: array[int]) -> bytes:
    """``Tokens`` in JSON, a few at a time: as objects of Python they would take much more."""
    parts = [b'{"tokens":[']
    for start in range(0, len(tokens), _TOGETHER):
        parts.append(b"," if start else b"")
        parts.append(",".join(map(str, tokens[start : start + _TOGETHER])).encode())
    return b"".join([*parts, b'],"count":%d}' % len(tokens)])


def router(service: Service) -> APIRouter:
    """All these endpoints."""
    routes = APIRouter(tags=["Strata"], route_class=bounded_route(service, ids=True))
    errors = documented(OpenAIError)

    @routes.post("/tokenize", response_model=Tokens, responses=errors)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text."""
        tokens = await service.tokenize(
            body.content, add_special=body.add_special, parse_special=body.parse_special
        )
        SHARE.get().add(len(tokens) * _TOKEN_BYTES)
        return Response(_tokens_json(tokens), media_type=Reply.media_type)

    @routes.post("/detokenize", response_model=Text, responses=errors)
    async def detokenize(body: DetokenizeRequest) -> Reply:
        """The text of token ids, the names of special tokens included."""
        vocabulary = service.llm.model.vocab_size
        wrong = next((token for token in body.tokens if token >= vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token {wrong} is not in the vocabulary of {vocabulary}")
        tokenizer = service.llm.tokenizer
        text = await service.off_loop(lambda: tokenizer.decode(body.tokens, skip_special=False))
        return Reply({"content": text})

    @routes.get("/health", response_model=Health, responses=errors)
    async def health() -> Reply:
        """Whether requests are taken; needs no key."""
        if service.bridge.closing:
            raise ShuttingDown("the server is shutting down")
        return Reply({"status": "ok"})

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **errors,
        },
    )
    async def metrics() -> Response:
        """Figures in Prometheus's text format."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    return routes
