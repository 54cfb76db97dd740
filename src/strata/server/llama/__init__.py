"""llama-server's own protocol:
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"""

from __future__ import annotations

from fastapi import APIRouter

from strata.server.llama import completion, state, texts, tools
from strata.server.reading import bounded_route
from strata.server.service import Service


def router(service: Service) -> APIRouter:
    """All its endpoints that are not OpenAI's under another path."""
    routes = APIRouter(tags=["llama-server"], route_class=bounded_route(service, ids=True))
    for module in (completion, state, texts, tools):
        module.add_routes(routes, service)
    return routes
