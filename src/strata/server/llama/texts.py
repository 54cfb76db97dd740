"""``/apply-template``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from strata.errors import UsageError
from strata.server.admission import SHARE
from strata.server.conversation import rendered
from strata.server.document import OpenAIError, documented
from strata.server.llama.requests import TemplateRequest, TokenizeRequest
from strata.server.openai.chat import conversation
from strata.server.replies import Reply, to_json
from strata.server.service import Service

_TOGETHER = 1 << 12
_TOKEN_BYTES = 24
"""Of an id: its number, and its digits while they are joined and sent."""
_PIECE_BYTES = 160
"""Of an id with its text, beside the text."""


class Tokens(BaseModel):
    """Token ids and their number; with pieces, each is an object with its text, or with its bytes
    where they are no text."""

    tokens: list[int] | list[dict[str, Any]]
    count: int


class DetokenizeRequest(BaseModel):
    """Tokens to text."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


class Text(BaseModel):
    """The text of tokens; bytes that are no UTF-8 are U+FFFD."""

    content: str


class Prompt(BaseModel):
    """A conversation as the model reads it."""

    prompt: str


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    @routes.post("/tokenize", response_model=Tokens, responses=errors)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text."""
        tokens = await service.tokenize(
            body.content, add_special=body.add_special, parse_special=body.parse_special
        )
        each = _PIECE_BYTES if body.with_pieces else _TOKEN_BYTES
        SHARE.get().add(len(tokens) * each)

        def write() -> bytes:
            written = _pieces(service, tokens) if body.with_pieces else map(str, tokens)
            return _tokens_json(written, len(tokens))

        return Response(await service.beside(write), media_type=Reply.media_type)

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

    @routes.post("/apply-template", response_model=Prompt, responses=errors)
    async def apply_template(body: TemplateRequest) -> Reply:
        """A conversation by the model's chat template, not yet tokens."""
        return Reply({"prompt": await rendered(service, await conversation(service, body))})


def _pieces(service: Service, tokens: array[int]) -> Iterable[str]:
    tokenizer = service.llm.tokenizer
    for id in tokens:
        data = tokenizer.token_bytes(id, special=True)
        try:
            piece: Any = data.decode("utf-8")
        except UnicodeDecodeError:
            piece = list(data)
        yield to_json({"id": id, "piece": piece})


def _tokens_json(tokens: Iterable[str], count: int) -> bytes:
    """``Tokens`` in JSON, a few at a time: as objects of Python they would take much more."""
    parts = [b'{"tokens":[']
    some: list[str] = []
    for token in tokens:
        some.append(token)
        if len(some) == _TOGETHER:
            parts += [",".join(some).encode(), b","]
            some.clear()
    parts.append(",".join(some).encode())
    if not some and len(parts) > 2:
        parts.pop(-2)
    return b"".join([*parts, b'],"count":%d}' % count])
