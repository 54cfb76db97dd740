"""From the bytes of a body to the checked request, within bounds that are kept by counting first.

FastAPI would make Python objects of all that a body holds, ignored fields included, look for every
error in it, and do both in the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.responses import Response

from strata.server.admission import SHARE, UNCOUNTED, Measure
from strata.server.bodies import Asked
from strata.server.errors import ApiError
from strata.server.invalid import as_invalid
from strata.server.service import Service

_ERRORS = 64
"""Of one body that are looked at."""


def bounded_route(service: Service, *, ids: bool = False) -> type[APIRoute]:
    """The class of routes whose bodies are read here. Bodies with ``ids`` may hold token ids, and
    more values for that."""
    settings = service.settings
    most = settings.values + (4 * service.llm.context if ids else 0)

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            field = self.body_field
            model = cast("type[BaseModel] | None", field and field.field_info.annotation)

            async def handle_bounded(request: Request) -> Response:
                return await handle(_Bounded(request, service, model, most))

            return handle_bounded

    return BoundedRoute


class _Bounded(Request):
    def __init__(
        self, request: Request, service: Service, model: type[BaseModel] | None, most: int
    ) -> None:
        super().__init__(request.scope, request.receive)
        self._service = service
        self._model = model
        self._most = most

    async def json(self) -> Any:
        """The checked request, which FastAPI takes as it is."""
        body = await self.body()
        model, settings = self._model, self._service.settings
        assert model is not None, "only routes with a body read one"
        most = self._most
        if len(body) <= UNCOUNTED:
            measure = Measure.of(body, most)
        else:
            measure = await self._service.off_loop(lambda: Measure.of(body, most))
        if measure.values > most:
            raise ApiError(
                413,
                f"the request body has more than {most} values and keys; "
                "that is the most that can be read here",
            )
        if measure.depth > settings.depth:
            raise ApiError(
                400,
                f"the request body is nested {measure.depth} deep; "
                f"at most {settings.depth} can be read here",
            )
        await SHARE.get().raise_to(measure)
        parsed = await self._service.off_loop(lambda: _parse(model, body))
        if isinstance(parsed, Asked):
            parsed.check_unknown(settings.unknown_fields)
        return parsed


def _parse(model: type[BaseModel], body: bytes) -> BaseModel:
    try:
        # Straight from the bytes: what is ignored within a field never becomes an object.
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    found = [{**error, "loc": ("body", *error["loc"])} for error in errors[:_ERRORS]]
    unread = found[0]["type"] == "json_invalid"
    raise as_invalid(found, None if unread else from_json(body))
