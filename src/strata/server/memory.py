"""``/memory``: the budget of the running server, told and changed between two steps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from strata.memory import process_memory
from strata.server.document import OpenAIError, documented
from strata.server.reading import bounded_route
from strata.server.replies import Reply
from strata.server.service import Service
from strata.sizes import parse_size


class MemoryRequest(BaseModel):
    """Another budget: bytes, or text such as ``4GB``."""

    memory: Annotated[int, Field(gt=0)] | str


class Memory(BaseModel):
    """``budget`` in bytes (null: none is kept to), what the process takes as the system counts it,
    and who owns how much. ``streamed`` names what is read while the model runs, rows of tables and
    experts that are in none of ``expert_slots`` included. ``kv_choice`` says why KV is of
    ``kv_type``, where a loss was allowed (null: it was not)."""

    budget: int | None
    resident: int
    owned: dict[str, int]
    expert_slots: int
    streamed: list[str]
    kv_blocks: list[int]
    kv_type: str
    kv_choice: str | None
    predicted_tokens_s: float | None


def router(service: Service) -> APIRouter:
    """These endpoints."""
    routes = APIRouter(tags=["Strata"], route_class=bounded_route(service))
    errors = documented(OpenAIError)

    def told() -> Reply:
        llm, plan = service.llm, service.llm.plan
        return Reply(
            {
                "budget": llm.ledger.budget,
                "resident": process_memory().total,
                "owned": {owner: n for owner, n in llm.ledger.owned.items() if n},
                "expert_slots": plan.expert_slots if plan else 0,
                "streamed": list(plan.streamed) if plan else [],
                "kv_blocks": list(plan.kv_blocks) if plan else [],
                "kv_type": llm.runtime.kv_type.name,
                "kv_choice": llm.runtime.kv_choice,
                "predicted_tokens_s": plan.predicted.decode_tok_s if plan else None,
            }
        )

    @routes.get("/memory", response_model=Memory, responses=errors)
    async def memory() -> Reply:
        """The budget, and who owns how much of it."""
        return told()

    @routes.post("/memory", response_model=Memory, responses=errors)
    async def change(body: MemoryRequest) -> Reply:
        """Run within another budget from the next step on. Answers that are under way keep their
        bits; one that is too small is refused with the smallest, and changes nothing."""
        wanted = parse_size(body.memory) if isinstance(body.memory, str) else body.memory
        await service.set_budget(wanted)
        return told()

    return routes
