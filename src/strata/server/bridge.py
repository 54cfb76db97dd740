"""From the engine's driver to asyncio: tokens are delivered in the event loop.

Nothing here waits for a client. What a client has not fetched yet is one answer's tokens, which the
context bounds; a client that goes away cancels its requests before the next step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from time import perf_counter

from strata.engine import Delta, Driver, EngineStatus, Job, QueueFull, Run, Turn
from strata.errors import UsageError
from strata.server.errors import ShuttingDown


class Observer:
    """Hears of what happens, in the event loop's thread."""

    def on_token(self, arrived: float, previous: float | None, delta: Delta) -> None:
        """A token of a request that came at ``arrived``; ``previous`` is the time of the one
        before it (both ``perf_counter``)."""

    def on_step(self, seconds: float, status: EngineStatus) -> None:
        """A step is over that took ``seconds``; the state after it."""


class AsyncRun:
    """The requests of one call, for the event loop's thread. Whoever made it cancels it at last,
    however the call ends."""

    def __init__(self, bridge: Bridge, run: Run) -> None:
        self._bridge = bridge
        self.run = run
        self.arrived = perf_counter()
        self._events: deque[tuple[int, Delta]] = deque()
        self._cut_off: Exception | None = None
        self._over = run.over
        self._wake = asyncio.Event()
        self._paused = False
        self._times: dict[int, float] = {}

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt positions computed so far, and of all."""
        return self.run.progress

    def cancel(self) -> None:
        """End what has not ended by itself, before the engine's next step."""
        self._bridge.forget(self)
        self.run.cancel()

    def cut_off(self, error: Exception) -> None:
        """End it with an error, not waiting for a step."""
        self._cut_off = error
        self.cancel()
        self._wake.set()

    async def tokens(self, pause_s: float | None = None) -> AsyncIterator[tuple[int, Delta] | None]:
        """Tokens of all jobs as they come, each with its job's number; None after ``pause_s``
        seconds without one, and where it was woken for progress. Raises what ended the run before
        its time."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._cut_off is not None:
                raise self._cut_off
            if self._over:
                self.run.check()
                return
            if not await self._woken(pause_s) or not (self._events or self._over):
                yield None

    async def _woken(self, pause_s: float | None) -> bool:
        """Whether something came within ``pause_s`` seconds. Python 3.11's ``wait_for`` would lose
        a cancellation that comes together with it."""
        self._wake.clear()
        self._paused = False
        timer = None
        if pause_s is not None:
            timer = asyncio.get_running_loop().call_later(pause_s, self._pause)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return not self._paused

    def _pause(self) -> None:
        self._paused = True
        self._wake.set()

    def receive(self) -> bool:
        """Take what has come, and wake who waits for it; whether nothing more will come."""
        # Asked for first: what comes with the end is there by then.
        over = self.run.over
        for index, delta in self.run.take():
            previous = self._times.get(index)
            self._times[index] = perf_counter()
            self._bridge.observer.on_token(self.arrived, previous, delta)
            self._events.append((index, delta))
        self._over = over
        self._paused = False
        self._wake.set()
        return over


class Bridge:
    """The event loop's way to the driver, which has a thread of its own from ``start`` on.
    ``queue`` requests may wait or run at once."""

    def __init__(self, driver: Driver, *, queue: int, observer: Observer) -> None:
        self._driver = driver
        self._queue = queue
        self.observer = observer
        self.status = driver.engine.status()
        self.closing = False
        self._runs: dict[Run, AsyncRun] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin; to be called in the event loop that will use this bridge."""
        self._loop = asyncio.get_running_loop()
        self._driver.start(self._tell)

    def close(self, timeout_s: float) -> bool:
        """End what runs and the thread; False if a step goes on beyond ``timeout_s``."""
        self.closing = True
        for run in list(self._runs):
            run.cancel()
        return self._driver.stop(timeout_s)

    @property
    def open(self) -> int:
        """Requests that wait or run."""
        return sum(run.open for run in self._runs)

    def submit(self, jobs: Sequence[Job]) -> AsyncRun:
        """Start jobs together. UsageError if they can never be served, QueueFull or
        ShuttingDown."""
        if self.closing:
            raise ShuttingDown("the server is shutting down")
        self._driver.check(jobs)
        if len(jobs) > self._queue:
            raise UsageError(
                f"{len(jobs)} answers are asked for at once; this server takes {self._queue} at "
                "most (--queue)"
            )
        if self.open + len(jobs) > self._queue:
            raise QueueFull(f"{self.open} requests wait or run already; try again later")
        run = self._driver.submit(jobs)
        self._runs[run] = AsyncRun(self, run)
        return self._runs[run]

    def forget(self, run: AsyncRun) -> None:
        """Count a run no longer, and give back its grammar: before its answer ends, or else who
        asks again at once would find it in use."""
        if self._runs.pop(run.run, None) is not None:
            for job in run.run.jobs:
                if job.params.grammar is not None:
                    job.params.grammar.close()

    def cut_off(self) -> None:
        """End every run with ShuttingDown, not waiting for a step. In the event loop's thread."""
        for run in list(self._runs.values()):
            run.cut_off(ShuttingDown("the server is shutting down"))

    def _tell(self, turn: Turn) -> None:
        """Hand all of a turn to the event loop at once: waking it costs more than a token."""
        assert self._loop is not None, "started before"
        # Once the loop has ended nobody is left to hear.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, turn)

    def _receive(self, turn: Turn) -> None:
        self.status = turn.status
        if turn.seconds is not None:
            self.observer.on_step(turn.seconds, turn.status)
        for run in turn.runs:
            receiver = self._runs.get(run)
            # The end may come after what was taken here: another turn tells of it then.
            if receiver is not None and receiver.receive():
                self.forget(receiver)
