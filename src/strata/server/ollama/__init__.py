"""Ollama's protocol: https://github.com/ollama/ollama/blob/main/docs/api.md"""

from __future__ import annotations

from fastapi import APIRouter

from strata.server.ollama import embeddings, generation, models
from strata.server.reading import bounded_route
from strata.server.service import Service


def router(service: Service) -> APIRouter:
    """All its endpoints."""
    routes = APIRouter(tags=["Ollama"], route_class=bounded_route(service, ids=True))
    for module in (generation, embeddings, models):
        module.add_routes(routes, service)
    return routes
