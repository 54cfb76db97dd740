"""Vertex AI's prediction protocol, as llama-server has it: several requests in one body.
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field

from strata.server.admission import COPIES, SHARE, Measure, Share
from strata.server.bodies import Asked
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError, error_body
from strata.server.guard import UPLOADS
from strata.server.inside import compact_json, posted
from strata.server.reading import bounded_route
from strata.server.replies import Reply, while_there
from strata.server.service import Service
from strata.server.settings import Unknown
from strata.sizes import format_size

_PATH = "/predict"
_MOST = 128
_FORMAT = "@requestFormat"


class PredictRequest(Asked):
    """Each instance is the body of another endpoint, which ``@requestFormat`` names: its path, or
    that in camel case without its version, as ``chatCompletions``."""

    on_unknown: ClassVar[Unknown] = "warn"

    instances: Annotated[list[dict[str, Any]], Field(max_length=_MOST, fail_fast=True)]


class Predictions(BaseModel):
    """The answer to each instance, or its error, in their order."""

    predictions: list[Any]


def router(service: Service) -> APIRouter:
    """The endpoint."""
    routes = APIRouter(tags=["Vertex AI"], route_class=bounded_route(service, ids=True))

    @routes.post("/predict", response_model=Predictions, responses=documented(OpenAIError))
    async def predict(body: PredictRequest, request: Request) -> Reply:
        """The answers of other endpoints, none as a stream; as many at once as run together."""
        # Made when it is asked for first, and kept.
        paths = await service.off_loop(lambda: _paths(request.app))
        free = asyncio.Semaphore(service.llm.engine.parallel)
        # That of this request: what it calls sets others.
        share = SHARE.get()
        await _check_room(service, share, body.instances)

        async def answered(instance: dict[str, Any]) -> Any:
            async with free:
                try:
                    return await _answered(service, share, request.app, paths, instance)
                except ApiError as error:
                    return error_body(_PATH, error)

        work = _all(map(answered, body.instances))
        return Reply({"predictions": await while_there(request, work)})

    return routes


async def _check_room(service: Service, share: Share, instances: list[dict[str, Any]]) -> None:
    """ApiError 413 where one of them could never be served beside the whole body."""
    if not share.text_bytes:
        return
    for instance in instances:
        body = await service.off_loop(partial(compact_json, instance))
        cost = Measure.of(body, len(body)).cost
        share.check(cost, f"an instance may take {format_size(cost)} beside the whole request")


async def _all(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What they return; when one fails, the others end before this does."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answered(
    service: Service, share: Share, app: FastAPI, paths: dict[str, str], instance: dict[str, Any]
) -> Any:
    said = dict(instance)
    wanted = said.pop(_FORMAT, None)
    path = paths.get(wanted) if isinstance(wanted, str) else None
    if path is None:
        known = ", ".join(sorted(name for name in paths if "/" not in name))
        raise ApiError(400, f"{_FORMAT} of an instance is one of {known}")
    if said.get("stream") or path.startswith("/api/"):
        said["stream"] = False
    data = await service.beside(lambda: compact_json(said))
    status, answer = await posted(app, path, data, service.settings.api_key)
    await share.take(COPIES * len(answer), "the answers to all instances are large")
    try:
        return json.loads(answer)
    except ValueError:
        raise ApiError(status, f"{path} gave no JSON") from None


def _paths(app: FastAPI) -> dict[str, str]:
    """Of documented endpoints that take a body of JSON, by their paths and in camel case."""
    found: dict[str, str] = {}
    for path, methods in app.openapi()["paths"].items():
        if "requestBody" in methods.get("post", ()) and path not in (_PATH, UPLOADS):
            found[path] = path
            found.setdefault(_camel(path), path)
    return found


def _camel(path: str) -> str:
    first, *others = re.split(r"[/_-]", path.removeprefix("/v1").removeprefix("/"))
    return first + "".join(part[:1].upper() + part[1:] for part in others)
