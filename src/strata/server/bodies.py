"""What bodies of requests have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from strata.decode import SamplingParams
from strata.decode.params import LARGEST_SEED
from strata.server.parsers import Tool

Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = Annotated[list[Stop], Field(max_length=64, fail_fast=True)]
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


class Drawing(Lenient):
    """How tokens are drawn, as every protocol says it."""

    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None

    def params(self, defaults: SamplingParams, **others: Any) -> SamplingParams:
        """``defaults`` with what this body says instead, and ``others`` above both."""
        said = self.model_dump(include=set(Sampling.model_fields), exclude_none=True)
        return replace(defaults, **{**said, **others})


class Sampling(Drawing):
    """What OpenAI's and Ollama's clients may say beyond that, by the same names."""

    min_p: Share | None = None
    seed: Seed | None = None
    stop: Stop | Stops | None = None
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


def tools_of(tools: Tools | None) -> list[Tool]:
    """The tools of a request."""
    functions = [tool.function for tool in tools or ()]
    return [
        Tool(f.name, f.description, f.parameters or {"type": "object", "properties": {}})
        for f in functions
    ]
