"""Anthropic's protocol: https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

from fastapi import APIRouter

from strata.server.anthropic import messages
from strata.server.reading import bounded_route
from strata.server.service import Service


def router(service: Service) -> APIRouter:
    """All its endpoints."""
    routes = APIRouter(tags=["Anthropic"], route_class=bounded_route(service))
    messages.add_routes(routes, service)
    return routes
