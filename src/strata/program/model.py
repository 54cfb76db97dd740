"""Weights, Segments and the Model: pure data made from a file's header, before any byte is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from math import prod
from typing import Literal

from strata.program.ops import Reads, float_operands, reads
from strata.program.program import Program
from strata.program.state import LayerState, StateGroup, state_groups
from strata.records import dataclass

RESULTS = ("logits", "embedding", "score")
"""What the last Segment may give of the rows that a step asks for; pairs of texts have a score."""

Transform = Literal["none", "transpose", "add_one", "negative_exp"]


@dataclass(frozen=True)
class Weight:
    """A weight of a Segment and where it comes from.

    ``name`` is the canonical (GGUF) name, unique in its Segment; ``shape`` is rows first.
    ``source`` names the tensor in the file, ``rows`` a part of its first axis (fused tensors), and
    ``transform`` what is done on the way in: ``transpose`` (GPT-2's Conv1D stores [in, out]) or
    ``add_one`` (Gemma's norms in Hugging Face files store weight - 1) or ``negative_exp`` (decays
    there are stored as log(-a)). All need a float tensor.

    A weight of three axes is several matrices, as experts have them: ``each`` is the part of the
    rows of every one that is meant, and ``experts`` names their tensors where the file keeps them
    apart (``source`` is the first).
    """

    name: str
    shape: tuple[int, ...]
    source: str
    rows: tuple[int, int] | None = None
    transform: Transform = "none"
    each: tuple[int, int] | None = None
    experts: tuple[str, ...] = ()

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and width of the matrix that all of it is: those of several lie one behind the
        other."""
        return prod(self.shape[:-1]), self.shape[-1]


@dataclass(frozen=True)
class WeightUnit:
    """Matrices of one Segment that stay in memory, or stream, together: what a Plan places.

    ``name`` is that of the Segment, with what the unit is for where the Segment has several
    (``layer.7.attention``). All of its weights are read alike. Vectors (norms, biases) are in no
    unit: they always stay.
    """

    name: str
    segment: str
    weights: tuple[Weight, ...]
    reads: Reads = "all"

    @property
    def experts(self) -> int:
        """Of how many a router chooses: the first axis of routed weights; 0 for others."""
        return self.weights[0].shape[0] if self.reads == "routed" else 0


@dataclass(frozen=True)
class Segment:
    """What is run at a time: one Program and the weights it needs.

    ``outputs`` gives the names under which the Program's outputs are known to the next Segment
    (a layer takes ``x`` and gives ``x``; the last gives one of ``RESULTS``).
    ``unit_of`` says for what the weights are that are placed apart from the rest, by their names
    (``attention``, ``ffn``).
    """

    name: str
    program: Program
    weights: tuple[Weight, ...]
    outputs: tuple[str, ...]
    unit_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str | None:
        """The value that leaves the Model here, rows of logits, embeddings or scores."""
        return self.program.outputs[0] if self.outputs[0] in RESULTS else None

    @cached_property
    def units(self) -> tuple[WeightUnit, ...]:
        """The matrices in the order of their first use, grouped by ``unit_of`` and how they are
        read. Of a weight that is read in two ways all is read."""
        vectors = float_operands(self.program)
        weights = {w.name: w for w in self.weights if len(w.shape) > 1 and w.name not in vectors}
        how: dict[str, Reads] = {}
        for op in self.program.ops:
            for name, read in reads(op).items():
                if name in weights:
                    how[name] = read if how.get(name, read) == read else "all"
        groups: dict[tuple[str, Reads], list[Weight]] = {}
        for name, read in how.items():
            groups.setdefault((self.unit_of.get(name, ""), read), []).append(weights[name])
        units: dict[str, WeightUnit] = {}
        for (part, read), members in groups.items():
            name = f"{self.name}.{part}" if part else self.name
            name = f"{name}.{read}" if name in units else name
            units[name] = WeightUnit(name, self.name, tuple(members), read)
        return tuple(units.values())


@dataclass(frozen=True)
class Model:
    """Segments in running order (embed, layers, head) and the sizes that others plan with.

    ``state[i]`` is what is kept of a sequence under the number i, which Ops have as their attribute
    ``layer``: that of the layer where each keeps one thing. A layer with several (keys and values
    beside a state, a convolution before a scan) has a number for each.
    """

    architecture: str
    segments: tuple[Segment, ...]
    state: tuple[LayerState, ...]
    vocab_size: int
    width: int
    context_length: int

    @property
    def embeds(self) -> bool:
        """Whether rows that leave the Model are embeddings or scores, not logits."""
        return self.segments[-1].outputs[0] != "logits"

    @property
    def ranks(self) -> bool:
        """Whether they are scores."""
        return self.segments[-1].outputs[0] == "score"

    @property
    def row_width(self) -> int:
        """Numbers of each row that leaves the Model."""
        last = self.segments[-1].program
        return last.values[last.outputs[0]].width

    @cached_property
    def causal(self) -> bool:
        """Whether rows see only what came before them, so that text can be continued."""
        ops = (op for segment in self.segments for op in segment.program.ops)
        return all(op.attrs.get("causal", True) for op in ops)

    @cached_property
    def groups(self) -> tuple[StateGroup, ...]:
        """Layers whose state is kept for the same time."""
        return state_groups(self.state)
