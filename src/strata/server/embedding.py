"""Texts to vectors, and scores of texts by a question, for every protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.engine import ContextExceeded
from strata.engine.texts import pair_ids
from strata.errors import UsageError
from strata.models import Pooling, embedding_model
from strata.records import dataclass
from strata.server.admission import SHARE
from strata.server.errors import ApiError
from strata.server.service import Service
from strata.sizes import format_size

Input = str | Sequence[int]
"""A text, or its token ids."""

_NUMBER_BYTES = 80
"""Of each number of a vector that is sent as text: itself, as an object, and its digits."""


@dataclass(frozen=True)
class Embedded:
    """Vectors [texts, width], and the tokens of all texts."""

    vectors: NDArray[np.float32]
    tokens: int


async def embed(
    service: Service,
    inputs: Sequence[Input],
    *,
    dimensions: int | None = None,
    truncate: bool = False,
    pooling: Pooling | None = None,
    normalize: bool = True,
) -> Embedded:
    """The embedding of each input. With ``truncate`` texts lose what is beyond the context, which
    otherwise is ContextExceeded."""
    llm = service.llm
    if llm.model.ranks:
        raise UsageError("this model scores texts by a question (/v1/rerank) and embeds none")
    width = embedding_model(llm.model).row_width
    if dimensions is not None and not 1 <= dimensions <= width:
        raise UsageError(f"{dimensions} dimensions are asked for; embeddings have {width}")
    texts = [await _ids(service, each, truncate) for each in inputs]
    await _take(len(texts) * (dimensions or width))
    rows = []
    for some in _parts(texts, llm.engine.token_budget):
        # Others have the engine between two parts.
        rows.append(
            await service.alone(
                lambda _, some=some: llm.embed(  # type: ignore[misc]
                    some, dimensions=dimensions, pooling=pooling, normalize=normalize
                )
            )
        )
        service.metrics.on_embedded(sum(map(len, some)))
    return Embedded(np.concatenate(rows), sum(map(len, texts)))


async def rank(service: Service, query: str, texts: Sequence[str]) -> Embedded:
    """How well each text answers the query: [texts, 1]. A model that ranks gives its scores, any
    other the cosine of embeddings."""
    llm = service.llm
    if not llm.model.ranks:
        found = await embed(service, [query, *texts])
        return Embedded(found.vectors[1:] @ found.vectors[:1].T, found.tokens)
    await _take(len(texts))
    rows: list[NDArray[np.float32]] = []
    tokens = 0
    some: list[Sequence[int]] = []

    async def run() -> None:
        rows.append(await service.alone(lambda _, some=some: llm.rank(query, some)))  # type: ignore[misc]
        service.metrics.on_embedded(sum(map(len, some)))

    # Each pair has the query again: only those are there that are scored together.
    for text in texts:
        pair = await service.off_loop(
            lambda text=text: pair_ids(  # type: ignore[misc]
                llm.tokenizer, text, llm.ledger, query=query, most=llm.context + 1
            )
        )
        _check_length(len(pair), llm.context)
        if some and sum(map(len, some)) + len(pair) > llm.engine.token_budget:
            await run()
            some = []
        some.append(pair)
        tokens += len(pair)
    await run()
    return Embedded(np.concatenate(rows)[:, None], tokens)


async def _ids(service: Service, given: Input, truncate: bool) -> Sequence[int]:
    most = service.llm.context
    ids = given
    if isinstance(ids, str):
        ids = await service.tokenize(ids, add_special=True, parse_special=False)
    if not ids:
        raise ApiError(400, "input: a text is empty, and this model has no token for that")
    if len(ids) > most and truncate:
        # The end token of encoders stays.
        stop = ids[-1:] if ids[-1] in service.llm.tokenizer.stop_ids else []
        ids = [*ids[: most - len(stop)], *stop]
    _check_length(len(ids), most)
    return ids


def _check_length(tokens: int, most: int) -> None:
    if tokens > most:
        raise ContextExceeded(
            f"input is too large to process: {tokens} tokens, and the context has {most}",
            tokens,
            most,
        )


async def _take(numbers: int) -> None:
    nbytes = numbers * _NUMBER_BYTES
    await SHARE.get().take(nbytes, f"the answer may take {format_size(nbytes)} of memory")


def _parts(texts: Sequence[Sequence[int]], most: int) -> list[list[Sequence[int]]]:
    """The texts in their order, some together: ``most`` tokens, or one."""
    parts: list[list[Sequence[int]]] = []
    room = 0
    for text in texts:
        if not parts or len(text) > room:
            parts.append([])
            room = most
        parts[-1].append(text)
        room -= len(text)
    return parts
