"""Tool calls: how a model is told of tools, and how its calls are found in its words."""

from __future__ import annotations

from strata.server.parsers.base import Piece, Thought, Tool, ToolCall, ToolFormat, ToolParser
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.llama3 import Llama3
from strata.server.parsers.mistral import Mistral

__all__ = ["Piece", "Thought", "Tool", "ToolCall", "ToolFormat", "ToolParser", "tool_format"]


def tool_format(template: str) -> ToolFormat:
    """The format that a chat template's text teaches; Hermes's for one that knows no tools."""
    if "[TOOL_CALLS]" in template:
        return Mistral()
    if "<tool_call>" not in template and "<|python_tag|>" in template:
        return Llama3()
    if "<tool_call>" not in template and '"parameters"' in template:
        return Llama3()
    return Hermes()
