"""Bodies that the front reads, counted before they are parsed: its share is small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from strata.server.admission import SHARE, UNCOUNTED, VALUE, Measure
from strata.server.errors import ApiError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

REQUESTS_BYTES = 24 << 20
"""Of all requests on their way through the front."""

_COPIES = 6
"""Of a body on its way: as it came, joined, framed and sent."""

_MOST_BYTES = 1 << 20
_MOST_VALUES = 2_000
_DEEPEST = 64
"""Of a body that the front itself answers: a system prompt, a template and parameters."""

_aside = ThreadPoolExecutor(1, "strata-bodies")


async def admitted(request: Request) -> bytes:
    """The body of a request that is passed on, with room for what it may become here. ApiError."""
    body = await request.body()
    if len(body) > UNCOUNTED:
        most = REQUESTS_BYTES // VALUE
        measure = await _done(body, lambda: Measure.of(body, most))
        await SHARE.get().raise_to(measure, _COPIES * measure.nbytes + VALUE * measure.values)
    return body


async def parsed(body: bytes, kind: type[M]) -> M:
    """``kind`` of a body that has room. Raises pydantic's ValidationError."""
    return await _done(body, lambda: kind.model_validate_json(body))


async def read(request: Request, kind: type[M]) -> M:
    """The body of a request that the front itself answers. ApiError for one that is none."""
    body = await request.body()
    if len(body) > _MOST_BYTES:
        raise ApiError(413, f"the request body is larger than {_MOST_BYTES} bytes")
    measure = await _done(body, lambda: Measure.of(body, _MOST_VALUES))
    if measure.values > _MOST_VALUES:
        raise ApiError(413, f"the request body has more than {_MOST_VALUES} values and keys")
    if measure.depth > _DEEPEST:
        raise ApiError(400, f"the request body is nested more than {_DEEPEST} deep")
    await SHARE.get().raise_to(measure)
    try:
        return await parsed(body, kind)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise ApiError(400, f"{where}: {wrong['msg']}" if where else wrong["msg"]) from None


async def _done(body: bytes, work: Callable[[], T]) -> T:
    """What is small at once, and what is large in another thread: all answers pass the loop."""
    if len(body) <= UNCOUNTED:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_aside, work)
