"""``/api/tags``, ``/api/show``, ``/api/ps`` and ``/api/version``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from strata import __version__
from strata.formats import open_model
from strata.formats.summary import summarise
from strata.server.document import OllamaError, documented
from strata.server.errors import ApiError
from strata.server.ollama.facts import facts_of, model_info
from strata.server.ollama.requests import ShowRequest
from strata.server.parsers import answer_format
from strata.server.replies import Reply
from strata.server.service import Service


class Details(BaseModel):
    """A model at a glance."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(BaseModel):
    """A model on this machine."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(BaseModel):
    """The models of this server."""

    models: list[ListedModel]


class RunningModel(BaseModel):
    """A loaded model; ``expires_at`` is far away, because it stays."""

    name: str
    model: str
    size: int
    size_vram: int
    digest: str
    details: Details
    expires_at: str
    context_length: int


class Running(BaseModel):
    """The models that are loaded."""

    models: list[RunningModel]


class Show(BaseModel):
    """A model in detail."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(BaseModel):
    """Of Ollama's protocol that is spoken here, and of this server."""

    version: str
    strata: str


OLLAMA_VERSION = "0.12.6"
"""Clients refuse what they take for an old Ollama. The newest one whose requests are known here."""


_NEVER = "9999-12-31T23:59:59Z"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    with open_model(service.llm.path) as opened:
        facts = facts_of(summarise(opened))
    errors = documented(OllamaError)

    def listed(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "model": name,
            "size": facts.size,
            "digest": facts.digest,
            "details": facts.details,
        }

    # Clients ask by HEAD whether anybody is there.
    @routes.head("/api/version", include_in_schema=False)
    @routes.get("/api/version", response_model=Version, responses=errors)
    async def version() -> Reply:
        """The server's version."""
        return Reply({"version": OLLAMA_VERSION, "strata": __version__})

    @routes.head("/api/tags", include_in_schema=False)
    @routes.get("/api/tags", response_model=Tags, responses=errors)
    async def tags() -> Reply:
        """The loaded model under each of its names."""
        models = [{**listed(name), "modified_at": facts.modified} for name in service.names]
        return Reply({"models": models})

    @routes.get("/api/ps", response_model=Running, responses=errors)
    async def running() -> Reply:
        """The loaded model and the memory that it takes."""
        engine = service.llm.engine
        model = {
            **listed(service.name),
            "size": service.llm.runtime.weights_bytes + engine.kv_bytes,
            "size_vram": 0,
            "expires_at": _NEVER,
            "context_length": engine.context,
        }
        return Reply({"models": [model]})

    @routes.post("/api/show", response_model=Show, responses=errors)
    async def show(body: ShowRequest) -> Reply:
        """The loaded model in detail."""
        name = body.model or body.name
        if not name:
            raise ApiError(400, "model is required")
        service.check_model(name)
        template = service.llm.tokenizer.chat_template
        source = "" if template is None else template.source
        return Reply(
            {
                "modelfile": f"FROM {service.name}",
                "parameters": "",
                "template": source,
                "details": facts.details,
                "model_info": model_info(facts.summary),
                # Where a chat template knows no tools, the model is told of them in words.
                "capabilities": [
                    "embedding" if service.llm.model.embeds else "completion",
                    *(["tools"] if template else []),
                    *(["thinking"] if answer_format(source).thinks else []),
                ],
                "modified_at": facts.modified,
            }
        )
