"""FLOPs and bytes of Ops: what the null backend counts, the planner adds up and reports explain."""

from __future__ import annotations

from collections.abc import Mapping

from strata.program.ops import SIGNATURES, Op, reads
from strata.program.ops.attention import main_operands, seen_positions
from strata.program.program import Program, Value
from strata.records import dataclass

FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepSize:
    """The sizes of one step: its tokens, rows of logits, and positions attended per token."""

    tokens: int
    logit_rows: int
    context: int
    kv_bytes_per_element: float = 2.0


@dataclass(frozen=True)
class Cost:
    """FLOPs and bytes: weights read, activations read and written, and state (``kv_bytes``: keys
    and values, or what recurrent layers keep) read and written."""

    flops: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    kv_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
            self.kv_bytes + other.kv_bytes,
        )

    @property
    def bytes(self) -> int:
        """All bytes that the Op moves."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes


def _rows(value: Value, size: StepSize) -> int:
    return size.logit_rows if value.shape[0] == "R" else size.tokens


def op_cost(op: Op, program: Program, size: StepSize, stored: Mapping[str, int]) -> Cost:
    """Cost of one Op. ``stored`` gives the bytes that each weight takes in its block format.

    Of a table that is looked up those rows are read that a token asks for, not the whole of it, and
    of experts those that are chosen.
    """
    values = [program.values[name] for name in op.inputs]
    out = program.values[op.output]
    rows = _rows(out, size)
    flops = SIGNATURES[op.kind].flops(values, op.attrs, rows, size.context)
    how = reads(op)
    weight_bytes, activation_bytes = 0, FLOAT_BYTES * rows * out.width
    for value in values:
        if value.role != "weight":
            activation_bytes += FLOAT_BYTES * rows * value.width
        elif how[value.name] == "rows":
            lookups = rows * (out.width // value.width)
            weight_bytes += lookups * stored[value.name] // int(value.shape[0])
        elif how[value.name] == "routed":
            share = distinct_experts(int(value.shape[0]), op.attrs["top_k"], rows)
            weight_bytes += round(stored[value.name] * share / int(value.shape[0]))
        else:
            weight_bytes += stored[value.name]
    return Cost(flops, weight_bytes, activation_bytes, state_bytes(op, program, size))


def distinct_experts(experts: int, top_k: int, rows: int) -> float:
    """Of so many experts, how many a step of ``rows`` is expected to need where each row chooses
    evenly and by itself."""
    return experts * (1 - (1 - top_k / experts) ** rows)


def state_bytes(op: Op, program: Program, size: StepSize) -> int:
    """Bytes of state that one Op reads and writes when the step's tokens are of one sequence."""
    signature = SIGNATURES[op.kind]
    if signature.state is None:
        return 0
    values = [program.values[name] for name in op.inputs]
    kept = signature.kept(values, op.attrs)
    if signature.state == "recurrent":
        return 2 * FLOAT_BYTES * kept
    keys = seen_positions(op.attrs, size.context)
    # Rows of one sequence share the keys they read: at least one pass, and one write a row where
    # the layer keeps its own.
    written = size.tokens if main_operands(op.attrs, len(values)) > 1 else 0
    return int(kept * size.kv_bytes_per_element * (keys + written))


def program_cost(program: Program, size: StepSize, stored: Mapping[str, int]) -> Cost:
    """Sum over a Program's Ops."""
    total = Cost()
    for op in program.ops:
        total += op_cost(op, program, size, stored)
    return total
