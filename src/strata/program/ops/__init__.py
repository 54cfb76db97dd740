"""The Ops: for each kind its operands, attributes, shape rule and arithmetic.

The semantics of every kind are defined by one obvious function in ``strata.backends.reference``.
Batch inputs (``tokens``, ``positions``, ``logits_indices``) and the state of sequences are not
operands: they belong to the step, and the Ops that need them say so in their signature.
"""

from __future__ import annotations

from collections.abc import Mapping

from strata.program.ops.attention import ATTENTION
from strata.program.ops.dense import ACTIVATIONS, DENSE
from strata.program.ops.elementwise import ELEMENTWISE
from strata.program.ops.experts import EXPERTS
from strata.program.ops.heads import HEADS
from strata.program.ops.recurrent import RECURRENT
from strata.program.ops.scans import SCANS
from strata.program.ops.signature import Op, Reads, Signature, operand_names
from strata.program.ops.streams import STREAMS
from strata.program.program import Program, ProgramError, Shape, Value

SIGNATURES: Mapping[str, Signature] = {
    **DENSE,
    **ELEMENTWISE,
    **HEADS,
    **ATTENTION,
    **RECURRENT,
    **SCANS,
    **STREAMS,
    **EXPERTS,
}


def expert_inputs(op: Op) -> dict[str, str]:
    """The names of an ``experts`` Op's inputs, by what they are."""
    return dict(zip(operand_names(op, SIGNATURES[op.kind]), op.inputs, strict=True))


def reads(op: Op) -> dict[str, Reads]:
    """How an Op reads each of its operands, if that is a weight."""
    signature = SIGNATURES[op.kind]
    pairs = zip(operand_names(op, signature), op.inputs, strict=True)
    return {value: signature.reads.get(name, "all") for name, value in pairs}


def float_operands(program: Program) -> frozenset[str]:
    """Names of a Program's weights that its Ops read as plain float32 arrays, whatever their
    shape."""
    return frozenset(
        name
        for op in program.ops
        for operand, name in zip(operand_names(op, SIGNATURES[op.kind]), op.inputs, strict=True)
        if operand in SIGNATURES[op.kind].as_floats
    )


def infer_shape(op: Op, values: list[Value]) -> Shape:
    """The output shape of an Op, after checking operands and attributes against its signature."""
    signature = SIGNATURES.get(op.kind)
    if signature is None:
        raise ProgramError(f"unknown Op '{op.kind}'; known: {', '.join(SIGNATURES)}")
    needed = sum(not name.endswith("?") for name in signature.operands)
    extras = op.attrs.get("extras", ()) if signature.extras else ()
    most = len(signature.operands) + len(extras)
    if not needed + len(extras) <= len(values) <= most or set(extras) - set(signature.extras):
        takes = ", ".join((*signature.operands, *extras))
        raise ProgramError(f"{op.kind} takes {takes}; got {len(values)} operands")
    missing = [a for a in signature.attrs if a not in op.attrs]
    unknown = [a for a in op.attrs if a not in signature.attrs]
    if missing or unknown:
        raise ProgramError(f"{op.kind}: attributes missing {missing}, unknown {unknown}")
    return signature.shape(values, op.attrs)


__all__ = [
    "ACTIVATIONS",
    "SIGNATURES",
    "Op",
    "Reads",
    "Signature",
    "expert_inputs",
    "float_operands",
    "infer_shape",
    "reads",
]
