"""Runs steps: the loaded Segments in order, and logits a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from traceback import clear_frames

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Activations, Backend, LoadedSegment, StateCache, Step
from strata.backends.kv_types import KVType
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.engine.sweeps import Sweeps
from strata.errors import StrataError
from strata.machine.constants import MB
from strata.models import embedding_model
from strata.program import Cost, Model, Segment, StepSize, program_cost
from strata.quant import BlockType

LOGIT_ROWS = 64
"""Rows of logits held at once: 39 MB for a vocabulary of 150,000."""

JOINED_TOKENS = 64
"""Tokens up to which a step is over so soon that nobody looks at or interrupts it on its way."""

Border = Callable[[Segment, Mapping[str, NDArray[np.float32]]], None]
"""Gets what a Segment gives to the next one, float32 [rows, width] by name."""

SEEN_ROWS = 512
"""Rows at most of what the last layer gave that are shown of a step."""

LoadProgress = Callable[[str, int, int | None], None]
"""``progress(label, bytes_done, bytes_total)`` while weights are loaded."""

_TOGETHER = 64 * MB
"""Bytes of weights for which it is worth while to begin to read."""


class Runner:
    """A Model with its weights in a backend's form.

    The last Segment is the head: it selects ``logits_indices`` and gives ``logits``, or their
    embeddings. It is run on slices of ``logit_rows`` rows, and not at all for a step that wants
    none. ``sweeps`` adds up
    what sweeps did, with what the backend says of its reading.
    """

    def __init__(
        self,
        backend: Backend,
        model: Model,
        weights: WeightSource,
        progress: LoadProgress | None = None,
        *,
        logit_rows: int = LOGIT_ROWS,
    ) -> None:
        self.backend = backend
        self._logit_rows = logit_rows
        self.sweeps = Sweeps(len(model.segments), backend.stats)
        self.model = model
        head = model.segments[-1]
        if head.result is None or all(op.kind != "select" for op in head.program.ops):
            raise StrataError(f"the last segment, '{head.name}', does not select rows to give")
        self._result = head.outputs[0]
        self._weights = weights
        self._embedding: Runner | None = None
        self._beside = False
        self._types = {s.name: {w.name: weights.type(w) for w in s.weights} for s in model.segments}
        self._stored: dict[str, Mapping[str, int]] = {
            segment.name: {w.name: weights.type(w).tensor_nbytes(w.shape) for w in segment.weights}
            for segment in model.segments
        }
        total = sum(sum(stored.values()) for stored in self._stored.values())
        done = 0
        self._loaded: list[LoadedSegment] = []
        self._segment: int | None = None
        self._running_joined = False
        for some in self._together(model.segments):
            if progress:
                progress("loading", done, total)
            self._loaded += backend.load(some, weights)
            done += sum(sum(self._stored[segment.name].values()) for segment in some)
        if progress:
            progress("loading", total, total)
        self._joined = backend.join(self._loaded[:-1])

    def _together(self, segments: Sequence[Segment]) -> Iterator[list[Segment]]:
        """Segments that are loaded in one call: as many as make it worth one."""
        some: list[Segment] = []
        nbytes = 0
        for segment in segments:
            some.append(segment)
            nbytes += sum(self._stored[segment.name].values())
            if nbytes >= _TOGETHER:
                yield some
                some, nbytes = [], 0
        if some:
            yield some

    def rearrange(self, settings: BackendSettings, before: BackendSettings) -> None:
        """Between two steps: hold and stream what other settings say; see Backend. What fails
        leaves it as it was ``before``."""
        # Whoever holds a Segment holds its weights.
        self._loaded, self._joined, self._embedding = [], None, None
        try:
            self._loaded = self.backend.rearrange(settings)
        except BaseException as error:
            # Frames that failed hold weights, too.
            clear_frames(error.__traceback__)
            settings = before
            self._loaded = self.backend.rearrange(settings)
            raise
        finally:
            self._joined = self.backend.join(self._loaded[:-1])
            self._logit_rows = settings.max_logit_rows

    def embedding(self) -> Runner:
        """This Runner if its Model embeds, else one of the same weights that gives what the head
        would multiply (``models.embedding_model``). UsageError for a family with weights there that
        have to be loaded: ``embedding`` does."""
        if self.model.embeds:
            return self
        if self._embedding is None:
            other = copy(self)
            other.model = embedding_model(self.model)
            head = other.model.segments[-1]
            other._result = head.outputs[0]
            other._loaded = [
                *self._loaded[:-1],
                *self.backend.load([head], self._weights, beside=True),
            ]
            other._beside = True
            self._embedding = other
        return self._embedding

    @property
    def segment(self) -> int | None:
        """Number of the Segment that is being run, None between sweeps; any thread may look."""
        if self._running_joined and self._joined is not None:
            return self._joined.current
        return self._segment

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Names of the Segments and the bytes of each one's weights, resident or not. Weights that
        two share, as embedding and head do, count with the later one, which reads all of them."""
        last = {weight: name for name, stored in self._stored.items() for weight in stored}
        return [
            (name, sum(size for weight, size in stored.items() if last[weight] == name))
            for name, stored in self._stored.items()
        ]

    def state_cache(self, blocks: Sequence[int], kv_type: KVType | None = None) -> StateCache:
        """State of sequences, with so many blocks in each group."""
        return self.backend.state_cache(self.model.state, blocks, kv_type)

    def cost(self, size: StepSize) -> Cost:
        """FLOPs and bytes of one step, from the Programs and the weights' block formats."""
        total = Cost()
        for segment in self.model.segments:
            total += program_cost(segment.program, size, self._stored[segment.name])
        return total

    @property
    def loaded(self) -> Sequence[LoadedSegment]:
        """The Segments in running order, as the backend holds them."""
        return self._loaded

    def weight_type(self, segment: str, weight: str) -> BlockType:
        """Block type of a Segment's weight."""
        return self._types[segment][weight]

    def count(self, step: Step, kv_bytes_per_element: float) -> Mapping[tuple[str, str], Cost]:
        """What each Op of a step computes and moves, by (Segment, output of the Op)."""
        from strata.backends.null import NullBackend, NullSegment

        null = NullBackend(kv_bytes_per_element)
        state = null.state_cache(self.model.state, (1,) * len(self.model.groups))
        for segment in self.model.segments:
            null.run(NullSegment(segment, self._stored[segment.name]), step, state, {})
        return null.costs

    def calls(self, step: Step) -> int:
        """Calls of the backend that a step takes."""
        heads = -(-len(step.logits_indices) // self._logit_rows)
        return heads + (1 if self._joins(step) else len(self._loaded) - 1)

    def _joins(self, step: Step) -> bool:
        return self._joined is not None and len(step.tokens) <= JOINED_TOKENS

    def run(
        self,
        step: Step,
        state: StateCache,
        border: Border | None = None,
        seen: Callable[[NDArray[np.float32]], None] | None = None,
        seen_of: Sequence[int] = (),
    ) -> Iterator[NDArray[np.float32]]:
        """Run a step; yields logits (or embeddings), a few rows [rows, vocabulary] at a time, in
        the order of ``logits_indices``. ``border`` is told what each Segment but the last gives,
        and ``seen`` what the Segments of the numbers ``seen_of`` (rising; none: the last layer)
        gave of the last SEEN_ROWS rows, side by side, float32 [rows, widths].

        The step has run when the iterator is exhausted. Each array is valid until the next one, and
        there is room for one: let go of it before the next one is asked for.
        """
        *body, head = self._loaded
        activations: Activations = {}
        with_head = step
        if self._beside:
            # Nothing of the head that is not run is to be read.
            step = replace(step, logits_indices=step.logits_indices[:0])
        self.sweeps.begin(step)
        completed = False
        shown = () if seen is None else tuple(seen_of) or (len(body) - 1,)
        joins = self._joins(step) and border is None and shown in ((), (len(body) - 1,))
        first = max(0, len(step.tokens) - SEEN_ROWS)
        given: list[NDArray[np.float32]] = []
        try:
            if self._joined is not None and joins:
                self._running_joined = True
                activations = self.backend.run(self._joined, step, state, activations)
                self._running_joined = False
                given += self._shown(activations, len(body) - 1, shown, first)
            else:
                for self._segment, loaded in enumerate(body):
                    activations = self.backend.run(loaded, step, state, activations)
                    self.sweeps.done(self._segment + 1)
                    if border is not None:
                        names = loaded.segment.outputs
                        border(loaded.segment, self.backend.export(activations, names))
                    given += self._shown(activations, self._segment, shown, first)
            if seen is not None:
                seen(given[0] if len(given) == 1 else np.concatenate(given, axis=1))
            self._segment = len(body)
            yield from self._run_head(head, with_head, state, activations)
            completed = True
        finally:
            self._segment, self._running_joined = None, False
            self.sweeps.end(completed=completed)

    def _shown(
        self, activations: Activations, number: int, shown: Sequence[int], first: int
    ) -> list[NDArray[np.float32]]:
        """What a Segment gave from row ``first`` on, if it is to be shown."""
        if number not in shown:
            return []
        (name,) = self._loaded[number].segment.outputs
        return [self.backend.export(activations, (name,), first)[name]]

    def _run_head(
        self, head: LoadedSegment, step: Step, state: StateCache, activations: Activations
    ) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(step.logits_indices), self._logit_rows):
            part = step
            if len(step.logits_indices) > self._logit_rows:
                wanted = step.logits_indices[start : start + self._logit_rows]
                part = replace(step, logits_indices=wanted)
            made = self.backend.run(head, part, state, activations)
            rows = [self.backend.export(made, (self._result,))[self._result]]
            # No reference stays here: who takes the rows lets them go before the next are made.
            del made
            yield rows.pop()
