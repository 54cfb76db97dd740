"""The forward pass as data: Ops over named values, grouped into Programs, Segments and a Model."""

from __future__ import annotations

from strata.program.builder import Builder
from strata.program.cost import Cost, Workload, op_cost, program_cost
from strata.program.model import KVLayer, Model, Segment, Weight
from strata.program.ops import SIGNATURES, Op, Signature
from strata.program.program import Program, ProgramError, Value

__all__ = [
    "SIGNATURES",
    "Builder",
    "Cost",
    "KVLayer",
    "Model",
    "Op",
    "Program",
    "ProgramError",
    "Segment",
    "Signature",
    "Value",
    "Weight",
    "Workload",
    "op_cost",
    "program_cost",
]
