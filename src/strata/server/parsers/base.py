"""What the formats of tool calls have in common."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from strata.decode.schemas import LAYOUT, closed

TokenId = Callable[[str], int | None]
"""The id of a special token by its name, if the model has it."""


@dataclass(frozen=True)
class Tool:
    """A function that may be called; ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates expect."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


def _new_id() -> str:
    # Templates of Mistral accept ids of nine letters and digits only.
    return secrets.token_hex(5)[:9]


@dataclass(frozen=True)
class ToolCall:
    """A call as the model made it."""

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default_factory=_new_id, compare=False)


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


Piece = str | Thought | ToolCall
"""Of an answer: text, a part of a thought, or a call."""


class ToolParser(Protocol):
    """Finds calls in an answer however its text arrives."""

    def push(self, text: str) -> list[Piece]:
        """Add text; what is certain with it. What may yet be a call is held back."""

    def finish(self) -> list[Piece]:
        """The rest: what was held back and is no call is text."""


class ToolFormat(Protocol):
    """How one family of models writes calls."""

    def parser(self, names: Sequence[str]) -> ToolParser:
        """For one answer; only ``names`` can be called."""

    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """A grammar in llguidance's Lark of exactly one call of one of ``tools``."""


class Markers:
    """Text in which calls stand behind a ``start`` marker, up to an ``end`` or to the end of all.

    ``read`` makes calls of what is between, or None if it is not (yet) one.
    """

    def __init__(
        self, start: str, end: str | None, read: Callable[[str], list[ToolCall] | None]
    ) -> None:
        self._start = start
        self._end = end
        self._read = read
        self._held = ""
        self._inside = False
        self._after_call = False

    def push(self, text: str) -> list[Piece]:
        """See ToolParser."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            if self._after_call and self._held:
                # The newline between two calls, or after the last, is no text.
                self._held = self._held.removeprefix("\n")
                self._after_call = False
            if not self._inside:
                at = self._held.find(self._start)
                cut = len(self._held) - overlap(self._held, self._start) if at < 0 else at
                if cut:
                    pieces.append(self._held[:cut])
                if at < 0:
                    self._held = self._held[cut:]
                    return pieces
                self._held = self._held[at + len(self._start) :]
                self._inside = True
            if self._end is None or not self._take_call(pieces):
                return pieces

    def finish(self) -> list[Piece]:
        """See ToolParser."""
        held, self._held = self._held, ""
        if not self._inside:
            return [held] if held else []
        self._inside = False
        calls = self._read(held)
        return [self._start + held] if calls is None else list(calls)

    def _take_call(self, pieces: list[Piece]) -> bool:
        assert self._end is not None
        at = self._held.find(self._end)
        while at >= 0:
            calls = self._read(self._held[:at])
            if calls is not None:
                pieces += calls
                self._held = self._held[at + len(self._end) :]
                self._inside = False
                self._after_call = True
                return True
            # The marker may stand inside a string of the arguments: look for the next one.
            at = self._held.find(self._end, at + 1)
        return False


def read_call(value: Any, names: Sequence[str], arguments: Sequence[str]) -> ToolCall | None:
    """A call from a JSON object with a ``name`` and its arguments under one of these keys."""
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    given: Any = next((value[key] for key in arguments if key in value), {})
    if isinstance(given, str):
        given = parse_json(given)
    return ToolCall(value["name"], given) if isinstance(given, dict) else None


def parse_json(text: str) -> Any:
    """The JSON value that ``text`` is, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def lark_alternatives(tools: Sequence[Tool], before: Callable[[str], str], after: str) -> str:
    """``start`` as one of the tools: ``before(name)``, arguments by its schema, ``after``."""
    rules = []
    for number, tool in enumerate(tools):
        # A keyword that the compiler does not know loosens the form of a call; it is no error.
        options = {"lenient": True, **LAYOUT}
        # A tool that names no arguments has none.
        schema = {**closed({"properties": {}, **tool.parameters}), "x-guidance": options}
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    starts = "\n     | ".join(
        f"{before(tool.name)} arguments_{number} {after}" for number, tool in enumerate(tools)
    )
    return f"start: {starts}\n" + "\n".join(rules)


def overlap(text: str, marker: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``marker``."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
