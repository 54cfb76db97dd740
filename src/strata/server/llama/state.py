"""``/props``, ``/slots`` and ``/lora-adapters``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from strata import __version__
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.llama.completion import generation_settings
from strata.server.replies import Reply
from strata.server.service import Service


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)
    llm = service.llm
    template = llm.tokenizer.chat_template

    def token(id: int | None) -> str:
        if id is None:
            return ""
        return llm.tokenizer.token_bytes(id, special=True).decode("utf-8", "replace")

    @routes.get("/props", responses=errors)
    async def props() -> Reply:
        """What is served, and how, by default."""
        ends = sorted(llm.tokenizer.stop_ids)
        return Reply(
            {
                "default_generation_settings": {
                    "id": 0,
                    "n_ctx": llm.context,
                    "speculative": False,
                    "is_processing": False,
                    "params": generation_settings(service, llm.sampling_defaults.params),
                },
                "total_slots": llm.engine.parallel,
                "model_alias": service.name,
                # Where it lies is nobody's business.
                "model_path": llm.path.name,
                "modalities": {"vision": False, "audio": False},
                "endpoint_slots": "slots" not in service.settings.without,
                "endpoint_props": False,
                "endpoint_metrics": "metrics" not in service.settings.without,
                "chat_template": "" if template is None else template.source,
                "bos_token": token(llm.tokenizer.bos_id),
                "eos_token": token(ends[0] if ends else None),
                "build_info": f"strata-{__version__}",
                "is_sleeping": False,
            }
        )

    @routes.post("/props", responses=errors)
    async def change_props() -> Reply:
        """Not possible: the defaults are those that the model states."""
        raise ApiError(501, "this server's properties cannot be changed while it runs")

    @routes.get("/slots", responses=errors)
    async def slots() -> Reply:
        """A place for each request that may run; which of them are taken."""
        service.settings.check_served("slots")
        running = service.bridge.status.running
        return Reply(
            [
                {
                    "id": number,
                    "n_ctx": llm.context,
                    "speculative": False,
                    "is_processing": number < running,
                }
                for number in range(llm.engine.parallel)
            ]
        )

    @routes.get("/lora-adapters", responses=errors)
    async def adapters() -> Reply:
        """There are none."""
        none: list[Any] = []
        return Reply(none)
