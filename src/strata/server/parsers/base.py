"""What the formats of answers have in common: what is told apart in them, and who does it."""

from __future__ import annotations

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from strata.records import dataclass

if TYPE_CHECKING:
    from strata.server.parsers.source import Source

T = TypeVar("T")

TokenId = Callable[[str], int | None]
"""The id of a special token by its name, if the model has it."""

Reading = Generator[None, None, T]
"""What reads a Source: it pauses where more text has to come, and ends with what it found."""


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


Tools = Mapping[str, Tool]
"""Those that can be called, by their names."""


def new_id() -> str:
    """Of a call. Templates of Mistral accept nine letters and digits only."""
    return secrets.token_hex(5)[:9]


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call begins; what comes up to its ToolCall belongs to it."""

    name: str
    id: str = field(compare=False)


@dataclass(frozen=True)
class CallDelta:
    """A piece of the arguments, which are JSON."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call at its end: ``arguments`` is all of its JSON, as the model wrote it. It is an object
    unless the answer was cut short, or the model made a mistake."""

    name: str
    arguments: str
    id: str = field(default_factory=new_id, compare=False)

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments, if they are a JSON object."""
        try:
            value = json.loads(self.arguments, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


Piece = str | Thought | CallBegin | CallDelta | ToolCall
"""Of an answer: text, a part of a thought, or of a call."""


class Parser(Protocol):
    """Tells the parts of an answer apart however its text arrives."""

    def push(self, text: str) -> list[Piece]:
        """Add text; what is certain with it. What may yet be markup is held back."""

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """The rest: half a mark was text, and a call that has begun ends as it is. Of an answer
        that was ``cut``, what had begun as a call is none and no text either."""


class ToolFormat(ABC):
    """How one family of models writes calls."""

    ends_thoughts: tuple[str, ...] = ()
    """Marks of calls that no thought has in it: it is over where one comes."""
    has_thoughts: ClassVar[bool] = False
    """Whether thoughts are a part of the format."""
    before_a_grammar: ClassVar[str] = ""
    """What a prompt needs at its end for an answer that is all of a given form."""

    def write(self, name: str, arguments: Any) -> str:
        """A call that the model made, for a chat template that prints text only."""
        call = {"name": name, "arguments": arguments}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"

    def history(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """``messages`` as this family's chat templates want calls and results."""
        return messages

    @abstractmethod
    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """Read an answer to its end, or all of it that comes after the thoughts. A call of what
        is no tool is text."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], token_id: TokenId) -> str:
        """A grammar in llguidance's Lark of exactly one call of one of ``tools``."""

    def opening(self, prompt: str) -> str:
        """The part of a prompt's end that belongs to the answer, and is read before it."""
        return ""


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


def parse_json(text: str) -> Any:
    """The JSON value that ``text`` is, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
