"""Weights, Segments and the Model: pure data made from a file's header, before any byte is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from strata.program.program import Program

Transform = Literal["none", "transpose", "add_one"]


@dataclass(frozen=True)
class Weight:
    """A weight of a Segment and where it comes from.

    ``name`` is the canonical (GGUF) name, unique in its Segment; ``shape`` is rows first.
    ``source`` names the tensor in the file, ``rows`` a part of its first axis (fused tensors), and
    ``transform`` what is done on the way in: ``transpose`` (GPT-2's Conv1D stores [in, out]) or
    ``add_one`` (Gemma's norms in Hugging Face files store weight - 1). Both need a float tensor.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    rows: tuple[int, int] | None = None
    transform: Transform = "none"


@dataclass(frozen=True)
class Segment:
    """The unit that is fetched, run and released: one Program and the weights it needs.

    ``outputs`` gives the names under which the Program's outputs are known to the next Segment
    (a layer takes ``x`` and gives ``x``; the head gives ``logits``).
    """

    name: str
    program: Program
    weights: tuple[Weight, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class KVLayer:
    """KV state of one attention layer; ``window`` > 0 means older positions are never read."""

    kv_heads: int
    head_dim: int
    window: int = 0


@dataclass(frozen=True)
class Model:
    """Segments in running order (embed, layers, head) and the sizes that others plan with."""

    architecture: str
    segments: tuple[Segment, ...]
    kv: tuple[KVLayer, ...]
    vocab_size: int
    width: int
    context_length: int
