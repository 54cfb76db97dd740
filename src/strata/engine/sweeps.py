"""What sweeps did: tokens, time, bytes read, and who waited for whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from strata.backends.base import Step


@dataclass(frozen=True)
class Streamed:
    """Bytes and seconds of streaming so far; see ``strata.backends.cpu.backend.StreamStats``.

    ``used`` bytes were multiplied with, ``from_disk`` the system was asked for, some of it ahead;
    ``rows`` are bytes of embedding rows.
    """

    used: int = 0
    from_disk: int = 0
    rows: int = 0
    reading_s: float = 0.0
    waited_s: float = 0.0
    full_s: float = 0.0
    fetching_s: float = 0.0

    def __add__(self, other: Streamed) -> Streamed:
        return Streamed(
            self.used + other.used,
            self.from_disk + other.from_disk,
            self.rows + other.rows,
            self.reading_s + other.reading_s,
            self.waited_s + other.waited_s,
            self.full_s + other.full_s,
            self.fetching_s + other.fetching_s,
        )

    def since(self, before: Streamed) -> Streamed:
        """What was added after ``before``."""
        return Streamed(
            self.used - before.used,
            self.from_disk - before.from_disk,
            self.rows - before.rows,
            self.reading_s - before.reading_s,
            self.waited_s - before.waited_s,
            self.full_s - before.full_s,
            self.fetching_s - before.fetching_s,
        )


NOTHING_STREAMED = Streamed()
"""What streaming has done where there is none."""


@dataclass
class SweepTotal:
    """Sums over sweeps of one kind: those of a decode, one token for each sequence, or others."""

    sweeps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    streamed: Streamed = field(default_factory=Streamed)

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
    """Adds up sweeps of ``segments`` Segments; ``streamed`` says what streaming has done so far.

    ``listener`` is told of the progress after every Segment but the last, and None at the end. A
    sweep that fails or is interrupted counts for nothing.
    """

    def __init__(self, segments: int, streamed: Callable[[], Streamed]) -> None:
        self.listener: Callable[[SweepProgress | None], None] | None = None
        self.prefill, self.decode = SweepTotal(), SweepTotal()
        self._segments, self._streamed = segments, streamed
        self._step: Step | None = None
        self._began = 0.0
        self._before = NOTHING_STREAMED

    def begin(self, step: Step) -> None:
        """A sweep begins."""
        self._step, self._began, self._before = step, perf_counter(), self._streamed()

    def done(self, segments: int) -> None:
        """So many Segments of the sweep have run."""
        if self.listener is None or self._step is None:
            return
        elapsed = perf_counter() - self._began
        streamed = self._streamed().since(self._before)
        left = elapsed / segments * (self._segments - segments)
        rate = streamed.used / max(elapsed, 1e-9)
        tokens = len(self._step.tokens)
        self.listener(SweepProgress(segments, self._segments, tokens, rate, elapsed, left))

    def end(self, *, completed: bool) -> None:
        """The sweep has come to its end, or was broken off."""
        step, self._step = self._step, None
        if self.listener is not None:
            self.listener(None)
        if step is None or not completed:
            return
        total = self.decode if len(step.tokens) == len(step.spans) else self.prefill
        total.sweeps += 1
        total.tokens += len(step.tokens)
        total.seconds += perf_counter() - self._began
        streamed = self._streamed()
        if streamed is not NOTHING_STREAMED:
            total.streamed += streamed.since(self._before)
