"""What every backend offers, and the step that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from strata.backends.kv_types import KV_BLOCK, KVType
from strata.backends.weights import WeightSource
from strata.program import KVLayer, Segment

__all__ = [
    "KV_BLOCK",
    "Activations",
    "Backend",
    "KVCache",
    "LoadedSegment",
    "Span",
    "Step",
]


@dataclass(frozen=True)
class Span:
    """Rows of one sequence within a step.

    Rows ``row .. row + rows`` of the step are the positions ``past .. past + rows`` of a sequence
    whose KV lies in the blocks that ``table`` lists (int32, block i holds positions
    ``i * KV_BLOCK ..``).
    """

    row: int
    rows: int
    past: int
    table: NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """One pass over the Segments: tokens of some sequences, and the rows that need logits."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    spans: tuple[Span, ...]
    out_rows: NDArray[np.int32]


class Books(Protocol):
    """Who owns how many bytes: asked before anything large is allocated."""

    def take(self, owner: str, nbytes: int) -> None:
        """Enter ``nbytes`` more for an owner; raises a StrataError where there is no room."""

    def give(self, owner: str, nbytes: int) -> None:
        """Enter that an owner gave ``nbytes`` back, or never had them."""


class NoBooks:
    """Books of somebody who has no limit."""

    def take(self, owner: str, nbytes: int) -> None:
        """Nothing is noted."""

    def give(self, owner: str, nbytes: int) -> None:
        """Nothing is noted."""


class KVCache(Protocol):
    """KV blocks of all layers; a block id is valid in every layer."""

    @property
    def blocks(self) -> int:
        """Blocks in every layer."""

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""

    def block(self, block: int, /) -> NDArray[np.uint8]:
        """The bytes of one block, all layers, as a writable view."""


class LoadedSegment(Protocol):
    """A Segment whose weights are in this backend's form."""

    segment: Segment

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""


class Joined(LoadedSegment, Protocol):
    """Several Segments that run as one."""

    @property
    def current(self) -> int:
        """Number among them of the one that runs, or ran last; any thread may look."""


Activations = Mapping[str, Any]
"""Named activations between Segments, opaque but for ``logits`` (float32 [R, vocabulary])."""


class Backend(Protocol):
    """Runs Segments. Implementations: reference (numpy), cpu (native), null (counts only)."""

    name: str

    @property
    def kv_types(self) -> tuple[KVType, ...]:
        """The KV types it can keep, its own choice first."""

    @property
    def numerics(self) -> str:
        """Names everything but model and KV type that the bits of its results depend on."""

    def load(self, segment: Segment, weights: WeightSource) -> LoadedSegment:
        """Bring a Segment's weights into this backend's form."""

    def kv_cache(
        self, layers: Sequence[KVLayer], blocks: int, kv_type: KVType | None = None
    ) -> KVCache:
        """KV for ``blocks`` blocks of KV_BLOCK positions in every layer."""

    def run(
        self, loaded: LoadedSegment, step: Step, kv: KVCache, inputs: Activations
    ) -> Activations:
        """Run one Segment over a step; returns its outputs under their outer names."""

    def join(self, loaded: Sequence[LoadedSegment]) -> Joined | None:
        """Several Segments to be run as one, from the first one's inputs to the last one's
        outputs; None where that saves nothing."""
