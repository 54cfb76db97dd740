"""``GET /v1/models`` and ``/v1/models/{id}``."""

from __future__ import annotations

from datetime import datetime, timezone
from time import time
from typing import Any

from fastapi import APIRouter, Request

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
            # As vLLM has it: whose alias it is.
            "root": service.name,
            "max_model_len": service.llm.context,
        }

    def anthropic_card(name: str) -> dict[str, Any]:
        created = datetime.fromtimestamp(started, timezone.utc).isoformat().replace("+00:00", "Z")
        return {"type": "model", "id": name, "display_name": name, "created_at": created}

    @routes.get("/models", include_in_schema=False)
    @routes.get("/v1/models", response_model=ModelList, responses=documented(OpenAIError))
    async def list_models(request: Request) -> Reply:
        """The loaded model under each of its names; in Anthropic's form for its clients."""
        if "anthropic-version" in request.headers:
            names = service.names
            return Reply(
                {
                    "data": [anthropic_card(name) for name in names],
                    "first_id": names[0],
                    "last_id": names[-1],
                    "has_more": False,
                }
            )
        return Reply({"object": "list", "data": [card(name) for name in service.names]})

    # Names of models may hold slashes.
    @routes.get("/v1/models/{id:path}", response_model=ModelCard, responses=documented(OpenAIError))
    async def retrieve_model(id: str, request: Request) -> Reply:
        """One model."""
        service.check_model(id)
        if "anthropic-version" in request.headers:
            return Reply(anthropic_card(id))
        return Reply(card(id))
