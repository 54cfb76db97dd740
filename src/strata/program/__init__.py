"""The forward pass as data: Ops over named values, grouped into Programs, Segments and a Model."""

from __future__ import annotations

from strata.program.builder import Builder
from strata.program.cost import Cost, StepSize, op_cost, program_cost, state_bytes
from strata.program.model import Model, Segment, Weight, WeightUnit
from strata.program.ops import SIGNATURES, Op, Reads, Signature, reads
from strata.program.program import Program, ProgramError, Value
from strata.program.state import (
    LayerState,
    PagedKV,
    Recurrent,
    Shared,
    StateGroup,
    state_groups,
)

__all__ = [
    "SIGNATURES",
    "Builder",
    "Cost",
    "LayerState",
    "Model",
    "Op",
    "PagedKV",
    "Program",
    "ProgramError",
    "Reads",
    "Recurrent",
    "Segment",
    "Shared",
    "Signature",
    "StateGroup",
    "StepSize",
    "Value",
    "Weight",
    "WeightUnit",
    "op_cost",
    "program_cost",
    "reads",
    "state_bytes",
    "state_groups",
]
