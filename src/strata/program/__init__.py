"""The forward pass as data: Ops over named values, grouped into Programs, Segments and a Model."""

from __future__ import annotations

from strata.program.builder import Builder
from strata.program.cost import Cost, Workload, op_cost, program_cost
from strata.program.model import KVLayer, Model, Segment, Weight, WeightUnit
from strata.program.ops import SIGNATURES, Op, Reads, Signature, reads
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
    "Reads",
    "Segment",
    "Signature",
    "Value",
    "Weight",
    "WeightUnit",
    "Workload",
    "op_cost",
    "program_cost",
    "reads",
]
