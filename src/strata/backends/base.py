"""What every backend offers, and the step that it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from strata.backends.kv_types import KV_BLOCK, KVType
from strata.backends.profile import ModelProfile
from strata.backends.settings import ActivationsName, BackendSettings
from strata.backends.weights import WeightSource
from strata.program import LayerState, Model, Op, Segment, StateGroup
from strata.records import dataclass

__all__ = [
    "KV_BLOCK",
    "NO_BLOCK",
    "NO_STATS",
    "Activations",
    "Backend",
    "BackendStats",
    "Books",
    "LoadedSegment",
    "NodeTimes",
    "Span",
    "StateCache",
    "Step",
]


NO_BLOCK = -1
"""Entry of a block table whose block was given back: what it held has left the window."""


@dataclass(frozen=True)
class Span:
    """Rows of one sequence within a step.

    Rows ``row .. row + rows`` of the step are the positions ``past .. past + rows`` of a sequence.
    ``tables`` has an int32 array for each group of the model's state. Entry i of a paged group's
    is the block of positions ``i * KV_BLOCK ..``, or NO_BLOCK below the first one that any row of
    the span can see. A recurrent group's has two entries, slots: the state after ``past``
    positions is read from the first (NO_BLOCK: all zeros, as a sequence begins), and that after
    ``past + rows`` is written to the second, which is another one.

    A span may branch off an earlier one of the step, whose number is ``parent``: position ``past``
    follows the parent's row at ``past - 1``, and the rows up to that one, with those that they
    follow in their turn, are ancestors. What ancestors keep is written into this span's tables
    too, so that each row sees every key in the same place as in plain decoding, with the same
    bits: the tables' blocks are its own from the one on in which the first ancestor's position
    lies. A model with recurrent state has no branches.
    """

    row: int
    rows: int
    past: int
    tables: tuple[NDArray[np.int32], ...]
    parent: int = -1


@dataclass(frozen=True)
class Step:
    """One pass over the Segments: tokens of some sequences, and which rows need logits.

    Spans cover the rows in order; ``positions`` are theirs.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    spans: tuple[Span, ...]
    logits_indices: NDArray[np.int32]


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


class StateCache(Protocol):
    """State of sequences: ``blocks[g]`` blocks of each of its ``groups``.

    A block of a paged group holds KV_BLOCK positions of all of its layers, a block of a recurrent
    one is a slot with the state of all of its layers; all are zeros at first. Blocks may be copied,
    read and written by another thread than the one that runs steps, but for those that a step
    writes at that moment. IndexError for a group or block that is not there.
    """

    @property
    def groups(self) -> tuple[StateGroup, ...]:
        """Layers whose state is kept for the same time."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of each group."""

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""

    def block_nbytes(self, group: int, /) -> int:
        """Bytes of a block of a group."""

    def copy(self, group: int, source: int, target: int, /) -> None:
        """Make block ``target`` of a group a copy of block ``source``."""

    def read(self, group: int, block: int, out: NDArray[np.uint8], /) -> None:
        """Put the bytes of a block into ``out``, ``block_nbytes`` of them."""

    def write(self, group: int, block: int, data: NDArray[np.uint8], /) -> None:
        """Give a block the bytes that ``read`` gave."""


class NodeTimes(Protocol):
    """Times of the nodes of a loaded Segment, for backends that can measure them."""

    @property
    def node_parts(self) -> Sequence[tuple[Op, ...]]:
        """The Ops that each node does; each Op is in one of them."""

    def set_timing(self, on: bool) -> None:
        """Measure from now on, or no longer."""

    def take_times(self) -> list[tuple[str, float]]:
        """Op kind and seconds of each node since the last call."""

    def multiplies(self, weight: str) -> str:
        """What the products with a weight multiply: ``int8``, ``bf16`` or ``f32``."""


class LoadedSegment(Protocol):
    """A Segment whose weights are in this backend's form."""

    segment: Segment

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""

    @property
    def node_times(self) -> NodeTimes | None:
        """How long its nodes take; None where the backend does not measure that."""


class Joined(LoadedSegment, Protocol):
    """Several Segments that run as one."""

    @property
    def current(self) -> int:
        """Number among them of the one that runs, or ran last; any thread may look."""


class ExpertSlots(Protocol):
    """Memory for some of all routed experts of a Model: others are read when they are chosen."""

    def scores(self) -> tuple[list[int], list[float]]:
        """How many experts each layer has, and what uses of each are worth to the policy that says
        which ones stay, one layer after the other."""

    def begin_with(self, scores: list[float]) -> None:
        """Before the first step: those are in slots from now on whose uses were worth most."""

    def record(self, *, on: bool) -> None:
        """From now on, or no longer, write down which experts rows choose."""

    def routes(self) -> list[tuple[int, int, list[int]]]:
        """What was written down: of each visit the layer, its rows, and what they chose by row."""


Activations = Mapping[str, Any]
"""Named activations between Segments, opaque: ``export`` gives them as arrays."""


@dataclass(frozen=True)
class BackendStats:
    """What a backend has read so far; zeros where it reads nothing.

    Streaming: ``used`` bytes of the file were multiplied with, ``wanted`` bytes were read in
    ``reads`` reads, some of them ahead, for which the system was asked for ``from_disk`` bytes
    (alignment adds some). Seconds: ``reading_s`` some read was under way, ``fetching_s`` some
    reader read or packed, ``waited_s`` the kernels waited for a tile or an expert, ``full_s`` all
    readers waited for room, or to be asked. Experts that are not resident: ``expert_hits`` were in
    memory when a step needed them, ``expert_misses`` were read; ``expert_bytes`` of the file they
    were in all, of which ``expert_read`` are those read; with ``expert_kept``
    it began. Of experts that were not there ``foreseen`` were read ahead as likely, of which
    ``foreseen_right`` were needed. Reading ``ahead`` of those that were missed had begun before
    their turn, as likely or as sure to be needed, ``ahead_bytes`` of it; ``wasted_bytes`` were
    read, or about to be, of others that their turn did not need.
    ``rows`` are the bytes of table rows, fetched one by one in ``row_reads`` reads that asked the
    system for ``rows_from_disk``; ``row_hits`` were still in memory. What
    stays was loaded once: ``loaded`` bytes, with some read under way for ``loading_s``.
    """

    used: int = 0
    wanted: int = 0
    from_disk: int = 0
    reads: int = 0
    reading_s: float = 0.0
    fetching_s: float = 0.0
    waited_s: float = 0.0
    full_s: float = 0.0
    rows: int = 0
    row_reads: int = 0
    rows_from_disk: int = 0
    row_hits: int = 0
    loaded: int = 0
    loading_s: float = 0.0
    expert_hits: int = 0
    expert_misses: int = 0
    expert_bytes: int = 0
    expert_read: int = 0
    expert_kept: int = 0
    foreseen: int = 0
    foreseen_right: int = 0
    ahead: int = 0
    ahead_bytes: int = 0
    wasted_bytes: int = 0

    def __add__(self, other: BackendStats) -> BackendStats:
        return BackendStats(*(a + b for a, b in zip(_figures(self), _figures(other), strict=True)))

    def since(self, before: BackendStats) -> BackendStats:
        """What was added after ``before``."""
        pairs = zip(_figures(self), _figures(before), strict=True)
        return BackendStats(*(a - b for a, b in pairs))


NO_STATS = BackendStats()
"""Of a backend that has read nothing."""


def _figures(stats: BackendStats) -> Iterable[Any]:
    return vars(stats).values()


class Backend(Protocol):
    """Runs Segments. Implementations: reference (numpy), cpu (native), null (counts only).

    Its class is asked before there is an object of it: ``profile`` what a model would take, and
    ``create`` to make one. An object goes through ``load`` of all Segments in their order, then
    ``prepare``, then any number of ``run``, then ``close``.
    """

    name: str
    plans: bool
    """Whether it keeps to a Plan and its memory budget."""

    @property
    def kv_types(self) -> tuple[KVType, ...]:
        """The KV types it can keep, its own choice first."""

    @property
    def numerics(self) -> str:
        """Names everything but model and KV type that the bits of its results depend on."""

    @property
    def device(self) -> str:
        """What computes, in a word: an instruction set, a library, a card."""

    @property
    def threads(self) -> int | None:
        """Threads that compute; None where it has none to choose."""

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> Backend:
        """A backend that enters what it takes in ``books``. ``threads`` and ``device`` None are its
        own choice."""

    @staticmethod
    def profile(
        model: Model, weights: WeightSource, activations: ActivationsName = "int8"
    ) -> ModelProfile:
        """What a Model would take here, from its header alone, with ``activations`` as settings
        have them. UsageError unless it ``plans``."""

    def load(
        self, segments: Sequence[Segment], weights: WeightSource, *, beside: bool = False
    ) -> list[LoadedSegment]:
        """Bring the weights of some Segments, the next ones, into this backend's form. ``beside``:
        after ``prepare``, more that run in place of the last one, of vectors that others have;
        UsageError else."""

    def prepare(self) -> None:
        """All Segments are loaded: take what running takes, and begin to read ahead."""

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> StateCache:
        """Room for what layers keep of sequences: so many blocks of each of their groups."""

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> Activations:
        """Run one Segment over a step; returns its outputs under their outer names."""

    def join(self, loaded: Sequence[LoadedSegment]) -> Joined | None:
        """Several Segments to be run as one, from the first one's inputs to the last one's
        outputs; None where that saves nothing."""

    def export(
        self, activations: Activations, names: Sequence[str], first: int = 0
    ) -> dict[str, NDArray[np.float32]]:
        """Activations as ``run`` returned them last, rows from ``first`` on, float32 [rows, width]
        in host memory. They are the caller's: later steps do not change them."""

    def import_(self, arrays: Mapping[str, NDArray[np.float32]], step: Step) -> Activations:
        """The reverse: float32 [rows, width] as the inputs of the next Segment over ``step``. All
        inputs of that Segment are given at once."""

    def rearrange(self, settings: BackendSettings) -> list[LoadedSegment]:
        """Between two steps, when nobody holds a loaded Segment: hold and stream what other
        settings say, of as many positions. Returns the Segments anew, which give the same bits.
        When that fails nothing can be run until another call succeeds. UsageError unless it
        ``plans``."""

    def give_back(self, state: StateCache) -> None:
        """Free state that nobody uses any more."""

    def expert_slots(self) -> ExpertSlots | None:
        """After ``prepare``: the slots of those experts that are not resident; None where there are
        none. The next ``rearrange`` makes others."""

    def stats(self) -> BackendStats:
        """What was read so far. Cheap enough for every sweep."""

    def cached_bytes(self) -> int:
        """Page cache that the model's files take now, whoever brought it there. Looks at every page
        of them."""

    def close(self) -> None:
        """Let go of all Segments and of what running takes; nothing can be run afterwards."""
