"""Formats of answers by templates that only name their marks, and what is read of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from strata.server.parsers import AnswerFormat, Piece, Thought, Tool, ToolCall, answer_format
from strata.server.parsers.base import CallBegin, CallDelta

_NOTHING: dict[str, Any] = {"type": "object"}
ADD = Tool(
    "add",
    None,
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "string"},
            "c": {},
            "d": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "e": {"$ref": "#/$defs/e"},
        },
        "$defs": {"e": {"enum": ["1", "true"]}},
    },
)
TOOLS = (ADD, Tool("get.it", None, _NOTHING))

TEMPLATES = {
    "hermes": "tools tool_calls <tool_call>",
    "granite3": "tools <|tool_call|> <think></think> and write your response between "
    "<response></response>",
    "nemotron": "tools <TOOLCALL>",
    "minimax1": "tools <tool_calls>",
    "llama3": 'tools <|python_tag|> "parameters"',
    "mistral": "tools [TOOL_CALLS] [THINK] [/THINK]",
    "qwen-coder": "tools <tool_call> <function= <parameter= <think> </think>",
    "glm": "tools <tool_call> <arg_key> <think> </think>",
    "deepseek": "tools <｜tool▁call▁begin｜> <think> </think>",
    "deepseek3": "tools <｜tool▁call▁begin｜> ```json",
    "dsml": "tools ｜DSML｜ function_calls </think>",
    "dsml4": "tools ｜DSML｜ tool_calls </think>",
    "minimax2": "tools <minimax:tool_call> <think> </think>",
    "kimi": "tools <|tool_call_begin|> <think> </think>",
    "lfm2": "tools <|tool_list_start|>",
    "gemma4": "tools <|tool_call>call:",
    "harmony": "tools <|channel|> <|message|>",
    "seed": "tools <seed:tool_call> <seed:think> </seed:think>",
    "command-r": "tools <|START_ACTION|> <|END_ACTION|>",
    "qwen3": "tools <tool_call> <think> </think>",
}
FORMATS = {name: answer_format(template) for name, template in TEMPLATES.items()}

PROMPT = "<|start|>assistant"
"""At whose end answers begin."""


def joined(pieces: Sequence[Piece]) -> list[Any]:
    """Text as it is, thoughts in a list, calls as a name and arguments, which are text where they
    are no object. A call has a beginning, and says in pieces what it says at its end."""
    out: list[Any] = []
    for kind, group in groupby(pieces, key=_kind):
        if kind != "call":
            text = "".join(piece if isinstance(piece, str) else piece.text for piece in group)
            assert text
            out.append([text] if kind == "thought" else text)
            continue
        begun: CallBegin | None = None
        arguments: list[str] = []
        for piece in group:
            if isinstance(piece, CallBegin):
                assert begun is None
                begun, arguments = piece, []
                continue
            assert begun is not None
            if isinstance(piece, CallDelta):
                assert piece.text
                arguments.append(piece.text)
                continue
            assert isinstance(piece, ToolCall)
            said = (piece.name, piece.id, piece.arguments)
            assert (begun.name, begun.id, "".join(arguments)) == said
            parsed = piece.parsed
            out.append((piece.name, piece.arguments if parsed is None else parsed))
            begun = None
        assert begun is None
    return out


def _kind(piece: Piece) -> str:
    if isinstance(piece, str):
        return "text"
    return "thought" if isinstance(piece, Thought) else "call"


def read(form: AnswerFormat, parts: Sequence[str]) -> list[Any]:
    parser = form.parser(TOOLS, PROMPT)
    pieces = [piece for part in parts for piece in parser.push(part)]
    return joined([*pieces, *parser.finish()])
