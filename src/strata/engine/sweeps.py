"""What sweeps did: tokens, time, bytes read, and who waited for whom."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from strata.backends.base import NO_STATS, BackendStats, Step
from strata.records import dataclass


@dataclass
class SweepTotal:
    """Sums over sweeps of one kind: those of a decode, one token for each sequence, or others."""

    sweeps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    streamed: BackendStats = NO_STATS

    @property
    def compute_s(self) -> float:
        """Seconds during which the sweeps did not wait for weights."""
        return max(0.0, self.seconds - self.streamed.waited_s)


@dataclass(frozen=True)
class SweepProgress:
    """A sweep that is under way: Segments done, bytes a second so far, seconds to its end."""

    done: int
    segments: int
    tokens: int
    bytes_s: float
    elapsed_s: float
    left_s: float


class Sweeps:
    """Adds up sweeps of ``segments`` Segments; ``stats`` says what the backend has read so far.

    ``listener`` is told of the progress after every Segment but the last, and None at the end. A
    sweep that fails or is interrupted counts for nothing.
    """

    def __init__(self, segments: int, stats: Callable[[], BackendStats]) -> None:
        self.listener: Callable[[SweepProgress | None], None] | None = None
        self.prefill, self.decode = SweepTotal(), SweepTotal()
        self._segments, self._stats = segments, stats
        self._step: Step | None = None
        self._began = 0.0
        self._before = NO_STATS
        self._last: SweepTotal | None = None

    @property
    def token_s(self) -> float | None:
        """Seconds that computing a token of a prompt takes; None while none was."""
        total = self.prefill if self.prefill.tokens else self.decode
        return total.seconds / total.tokens if total.tokens else None

    def begin(self, step: Step) -> None:
        """A sweep begins."""
        self._step, self._began, self._before = step, perf_counter(), self._stats()

    def lost(self, rows: int) -> None:
        """So many rows of the last sweep came to nothing: guesses that were wrong, and what was
        computed anew because of them."""
        if self._last is not None:
            self._last.tokens -= rows

    def done(self, segments: int) -> None:
        """So many Segments of the sweep have run."""
        if self.listener is None or self._step is None:
            return
        elapsed = perf_counter() - self._began
        read = self._stats().since(self._before)
        left = elapsed / segments * (self._segments - segments)
        rate = read.used / max(elapsed, 1e-9)
        tokens = len(self._step.tokens)
        self.listener(SweepProgress(segments, self._segments, tokens, rate, elapsed, left))

    def end(self, *, completed: bool) -> None:
        """The sweep has come to its end, or was broken off."""
        step, self._step = self._step, None
        if self.listener is not None:
            self.listener(None)
        if step is None or not completed:
            return
        # Whoever only decodes wants logits of every row, those that were guessed among them.
        decodes = len(step.tokens) == len(step.logits_indices)
        total = self.decode if decodes else self.prefill
        self._last = total
        total.sweeps += 1
        total.tokens += len(step.tokens)
        total.seconds += perf_counter() - self._began
        stats = self._stats()
        # A backend that has nothing more to read gives the same object again and again.
        if stats is not self._before:
            total.streamed += stats.since(self._before)
