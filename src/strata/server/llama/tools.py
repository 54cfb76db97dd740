"""``/tools``: tools of MCP servers, as llama-server offers them. Models do not use them by
themselves: a client lists them, asks a model with them, and has the calls done that it answers."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Request

from strata.server.admission import SHARE
from strata.server.bodies import Asked, Text
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.mcp import LINE_BYTES, McpError, Tool
from strata.server.replies import Reply, while_there
from strata.server.service import Service
from strata.server.settings import Unknown

_COPIES = 3
"""Of an answer: as it came, its text, and that as JSON."""


class ToolCall(Asked):
    """``POST /tools``: a tool by its whole name, and its arguments."""

    on_unknown: ClassVar[Unknown] = "warn"

    tool: Text
    params: dict[str, Any] | None = None


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    @routes.get("/tools", responses=errors)
    async def tools() -> Reply:
        """The tools that there are, as functions to ask a model with."""
        return Reply([_told(tool) for tool in (await service.programs.tools()).values()])

    @routes.post("/tools", responses=errors)
    async def call_tool(body: ToolCall, request: Request) -> Reply:
        """What a tool gives, or how it failed."""
        tool = await service.programs.tool(body.tool)
        if tool is None:
            raise ApiError(404, f"there is no tool {body.tool[:80]!r} here (--mcp-servers)")
        await SHARE.get().take(_COPIES * LINE_BYTES, "a tool's answer may be large")
        try:
            work = tool.program.call(tool.name, body.params or {})
            return Reply({"plain_text_response": await while_there(request, work)})
        except McpError as error:
            return Reply({"error": str(error)})


def _told(tool: Tool) -> dict[str, Any]:
    return {
        "display_name": tool.name,
        "tool": tool.full_name,
        "type": "mcp",
        "permissions": {"write": True},
        "definition": {
            "type": "function",
            "function": {
                "name": tool.full_name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        },
    }
