"""Endpoints of no protocol in particular: health and figures."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from strata.server.document import OpenAIError, documented
from strata.server.errors import ShuttingDown
from strata.server.reading import bounded_route
from strata.server.replies import Reply
from strata.server.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """Alive, and taking requests."""

    status: Literal["ok"]


def router(service: Service) -> APIRouter:
    """All these endpoints."""
    routes = APIRouter(tags=["Strata"], route_class=bounded_route(service))
    errors = documented(OpenAIError)

    @routes.head("/health", include_in_schema=False)
    @routes.get("/v1/health", include_in_schema=False)
    @routes.get("/health", response_model=Health, responses=errors)
    async def health() -> Reply:
        """Whether requests are taken; needs no key."""
        if service.bridge.closing:
            raise ShuttingDown("the server is shutting down")
        return Reply({"status": "ok"})

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **errors,
        },
    )
    async def metrics() -> Response:
        """Figures in Prometheus's text format."""
        service.settings.check_served("metrics")
        headers = {"Process-Start-Time-Unix": str(int(service.started))}
        return Response(service.metrics.text(), media_type=METRICS_TYPE, headers=headers)

    return routes
