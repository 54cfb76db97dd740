"""``GET /v1/models`` and ``/v1/models/{id}``."""

from __future__ import annotations

from time import time
from typing import Any

from fastapi import APIRouter

from strata.server.document import OpenAIError, documented
from strata.server.openai.replies import ModelCard, ModelList
from strata.server.replies import Reply
from strata.server.service import Service


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    started = int(time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "strata",
            "max_model_len": service.llm.context,
        }

    @routes.get("/v1/models", response_model=ModelList, responses=documented(OpenAIError))
    async def list_models() -> Reply:
        """The loaded model under each of its names."""
        return Reply({"object": "list", "data": [card(name) for name in service.names]})

    # Names of models may hold slashes.
    @routes.get("/v1/models/{id:path}", response_model=ModelCard, responses=documented(OpenAIError))
    async def retrieve_model(id: str) -> Reply:
        """One model."""
        service.check_model(id)
        return Reply(card(id))
