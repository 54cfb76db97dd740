"""Mixtures of experts in native form: their matrices, nodes, tiles and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import strata._native as _native
from strata.backends.cpu.nodes import Building
from strata.program import Op, Program
from strata.program.ops import ACTIVATIONS, expert_inputs
from strata.program.ops.experts import CLAMPS, SCORINGS
from strata.records import dataclass

PANEL = 16

ExpertLayer = list[_native.ExpertMatrix]
"""The matrices of a layer's experts that are not resident: gate (where there is one), up, down."""


@dataclass(frozen=True)
class CachedExperts:
    """ExpertSlots; ``sizes`` are how many experts each layer has."""

    cache: _native.ExpertCache
    sizes: list[int]

    def scores(self) -> tuple[list[int], list[float]]:
        """How many each layer has, and what uses of each are worth."""
        return self.sizes, list(self.cache.scores())

    def begin_with(self, scores: list[float]) -> None:
        """Those are in slots from now on whose uses were worth most."""
        self.cache.begin_with(scores)

    def record(self, *, on: bool) -> None:
        """From now on, or no longer, write down what rows choose."""
        self.cache.record(on)

    def routes(self) -> list[tuple[int, int, list[int]]]:
        """What was written down."""
        return list(self.cache.routes)


@dataclass(frozen=True)
class ExpertShapes:
    """Sizes of an ``experts`` Op and what its matrices are called."""

    choices: int
    experts: int
    width: int
    ffn: int
    top_k: int
    gate: str | None
    up: str
    down: str

    @classmethod
    def of(cls, op: Op, program: Program) -> ExpertShapes:
        """Those of one Op."""
        named = expert_inputs(op)
        up, down = named["up"], named["down"]
        experts, ffn, width = (int(n) for n in program.values[up].shape)
        return cls(
            experts * op.attrs["shared_by"],
            experts,
            width,
            ffn,
            op.attrs["top_k"],
            named.get("gate"),
            up,
            down,
        )

    @property
    def products(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The matrices that are multiplied together: of what goes in, and of what comes out."""
        return ((self.up,) if self.gate is None else (self.gate, self.up)), (self.down,)

    def work_bytes(self, formats: Mapping[str, int], rows: int) -> int:
        """Bytes of arena beside operands and output; ``formats`` are native ids."""
        down = formats[self.down]
        return int(_native.experts_work(self.experts, self.ffn, self.top_k, down, rows))

    def scratch_bytes(self, formats: Mapping[str, int]) -> int:
        """Bytes of scratch of each thread."""
        known = (self.choices, self.width, self.ffn, formats[self.up], formats[self.down])
        return 4 * int(_native.experts_scratch(*known))


def padded_rows(experts: int, rows: int) -> int:
    """Rows of all experts together, each of whole panels."""
    return experts * -(-rows // PANEL) * PANEL


def build_experts(b: Building, op: Op, narrow: int, work: int) -> ExpertLayer:
    """Routing, the products and the weighted sum; returns what is to come from a cache."""
    named = expert_inputs(op)
    shapes = ExpertShapes.of(op, b.program)
    matrices, floats = b.parameters.matrices, b.parameters.floats

    def operand(name: str) -> tuple[Any, Any, Any]:
        extras = (named.get(f"{name}_{kind}") for kind in ("bias", "scale"))
        return (matrices[named[name]], *(None if e is None else floats[e] for e in extras))

    selection = named.get("selection")
    a = op.attrs
    b.native.experts(
        b.ids[named["x"]],
        b.ids[named["logits"]],
        b.ids[op.output],
        operand("gate") if "gate" in named else None,
        operand("up"),
        operand("down"),
        None if selection is None else floats[selection],
        ffn=shapes.ffn,
        top_k=a["top_k"],
        scoring=SCORINGS.index(a["scoring"]),
        select_logits=a["select"] == "logits",
        softmax_chosen=a["softmax_chosen"],
        renormalise=a["renormalise"],
        least_sum=a["least_sum"],
        scale=a["scale"],
        groups=a["groups"],
        groups_kept=a["groups_kept"],
        group_top2=a["group_score"] == "top2",
        activation=ACTIVATIONS.index(a["function"]),
        clamp=CLAMPS.index(a["clamp"]),
        limit=a["limit"],
        up_limit=a["up_limit"],
        weigh_input=a["weigh_input"],
        jitter=a["jitter"],
        shared_by=a["shared_by"],
        narrow=narrow,
        work=work,
    )
    parts = [matrices[name] for names in shapes.products for name in names]
    return [m for m in parts if isinstance(m, _native.ExpertMatrix)]
