"""OpenAI's protocol: https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from fastapi import APIRouter

from strata.server.openai import batches, chat, completions, embeddings, files, models, responses
from strata.server.reading import bounded_route
from strata.server.service import Service


def router(service: Service) -> APIRouter:
    """All its endpoints."""
    routes = APIRouter(tags=["OpenAI"], route_class=bounded_route(service, ids=True))
    for module in (models, chat, completions, embeddings, responses, files, batches):
        module.add_routes(routes, service)
    return routes
