"""Vertex AI's prediction protocol, as llama-server has it: several requests in one body.
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field

from strata.server.bodies import Asked
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError, error_body
from strata.server.guard import UPLOADS
from strata.server.inside import compact_json, posted
from strata.server.reading import bounded_route
from strata.server.replies import Reply, while_there
from strata.server.service import Service
from strata.server.settings import Unknown

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

        async def answered(instance: dict[str, Any]) -> Any:
            async with free:
                return await _answered(service, request.app, paths, instance)

        work = asyncio.gather(*map(answered, body.instances))
        return Reply({"predictions": await while_there(request, _all(work))})

    return routes


async def _all(work: asyncio.Future[list[Any]]) -> list[Any]:
    return await work


async def _answered(
    service: Service, app: FastAPI, paths: dict[str, str], instance: dict[str, Any]
) -> Any:
    said = dict(instance)
    wanted = said.pop(_FORMAT, None)
    path = paths.get(wanted) if isinstance(wanted, str) else None
    if path is None:
        known = ", ".join(sorted(name for name in paths if "/" not in name))
        return error_body(_PATH, ApiError(400, f"{_FORMAT} of an instance is one of {known}"))
    if said.get("stream") or path.startswith("/api/"):
        said["stream"] = False
    data = await service.beside(lambda: compact_json(said))
    status, answer = await posted(app, path, data, service.settings.api_key)
    try:
        return json.loads(answer)
    except ValueError:
        return error_body(_PATH, ApiError(status, f"{path} gave no JSON"))


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
