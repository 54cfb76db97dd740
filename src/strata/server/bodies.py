"""What bodies of requests have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from strata.decode import SamplingParams
from strata.decode.defaults import SamplingDefaults
from strata.decode.params import LARGEST_SEED
from strata.errors import UsageError
from strata.giving_way import give_way
from strata.server.errors import ApiError
from strata.server.notes import note
from strata.server.parsers import Tool
from strata.server.settings import Unknown

_TOLD = 8
"""Unknown fields that are named."""

Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(max_length=1024)]
Stops = Annotated[
    list[Stop],
    Field(max_length=64, fail_fast=True),
    AfterValidator(lambda stops: [s for s in stops if s]),
]
"""An empty one stops nothing, as everywhere."""
Seed = Annotated[int, Field(ge=-(2**63), le=LARGEST_SEED)]
Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
TopK = Annotated[int, Field(ge=-1), AfterValidator(lambda most: max(most, 0))]
"""0 or -1: as many as there are."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
Count = Annotated[int, Field(ge=1)]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]
ToolName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.-]+$")]


class Lenient(BaseModel):
    """Ignores unknown fields, as is the custom; numbers are finite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    def model_post_init(self, context: Any) -> None:
        """Between two of the many objects that a body may have, who waits to compute tokens may go
        first."""
        give_way()


class Asked(Lenient):
    """A request whose unknown fields are told of: by name, in an error or a warning.

    ``on_unknown`` is what the protocol's own server does. ``idle`` are fields that are known and
    without effect here, harmless to the answer; ``off`` are known with values that ask for nothing.
    A field that is null asks for nothing either.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    on_unknown: ClassVar[Unknown] = "refuse"
    idle: ClassVar[frozenset[str]] = frozenset()
    off: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def unknown(self) -> dict[str, list[str]]:
        """Fields that are not known, by the path of each, with known ones that look alike."""
        extra = self.__pydantic_extra__ or {}
        wrong = [
            name
            for name, value in extra.items()
            if value is not None
            and name not in self.idle
            and not any(value == nothing for nothing in self.off.get(name, ()))
        ]
        extra.clear()
        known = list(type(self).model_fields)
        return {name: get_close_matches(name, known, 1) for name in wrong[:_TOLD]}

    def check_unknown(self, policy: Unknown | None) -> None:
        """ApiError for unknown fields, or a note, as ``policy`` says."""
        unknown = self.unknown()
        if not unknown:
            return
        told = [
            repr(name) + (f" (did you mean {meant[0]!r}?)" if meant else "")
            for name, meant in unknown.items()
        ]
        if (policy or self.on_unknown) == "warn":
            note(f"fields without effect here: {', '.join(told)}")
            return
        raise ApiError(
            400,
            f"unrecognized request argument: {', '.join(told)}; leave it out, or start the server "
            "with --unknown-fields warn",
            param=next(iter(unknown)),
            code="unrecognized_argument",
        )


class Drawing(Asked):
    """How tokens are drawn, as every protocol says it."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None

    def params(self, defaults: SamplingDefaults, choices: int = 1, **others: Any) -> SamplingParams:
        """``defaults`` with what this body says instead, and ``others`` above both."""
        said = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        return defaults.with_said({**said, **others}, choices=choices)


class Sampling(Drawing):
    """What OpenAI's and Ollama's clients may say beyond that, by the same names."""

    min_p: Share | None = None
    seed: Seed | None = None
    stop: Annotated[Stop | Stops | None, AfterValidator(lambda stop: stop or None)] = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class JsonSchema(Lenient):
    """A schema that the answer must be valid under."""

    definition: dict[str, Any] = Field(alias="schema", default_factory=dict)


class FunctionDefinition(Lenient):
    """A function that may be called."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolDefinition(Lenient):
    """A tool; functions are the only kind."""

    type: Literal["function"] | None = "function"
    function: FunctionDefinition


Tools = Annotated[list[ToolDefinition], Field(max_length=128, fail_fast=True)]


def allowed(tools: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    """Those of the tools that a request lets be called; UsageError for a name that none has."""
    if unknown := {*names} - {tool.name for tool in tools}:
        raise UsageError(f"there is no tool {min(unknown)!r} among the tools")
    return [tool for tool in tools if tool.name in names]


def tools_of(tools: Tools | None) -> list[Tool]:
    """The tools of a request."""
    functions = [tool.function for tool in tools or ()]
    return [
        Tool(f.name, f.description, f.parameters or {"type": "object", "properties": {}})
        for f in functions
    ]
