"""Between asyncio and the engine: one thread owns the engine, everybody else sends it notes.

Nothing here waits for a client. What a client has not fetched yet is one answer's tokens, which the
context bounds; a client that goes away cancels its requests before the next step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from strata.decode import SamplingParams, TextStream
from strata.engine import Delta, Engine, EngineStatus, QueueFull, Request
from strata.errors import StrataError
from strata.server.errors import ShuttingDown

_log = logging.getLogger("strata.server")


@dataclass(frozen=True)
class Job:
    """One sequence to be continued."""

    prompt: Sequence[int]
    params: SamplingParams
    text: TextStream


@dataclass(eq=False)
class _Ticket:
    """A job on its way: ``request`` once the engine has it, ``computed`` positions so far."""

    run: Run
    index: int
    job: Job
    request: Request | None = None
    computed: int = 0
    over: bool = False


class Observer:
    """Hears of what happens, in the event loop's thread."""

    def on_token(self, arrived: float, previous: float | None, delta: Delta) -> None:
        """A token of a request that came at ``arrived``; ``previous`` is the time of the one
        before it (both ``perf_counter``)."""

    def on_step(self, seconds: float, status: EngineStatus) -> None:
        """A step is over that took ``seconds``; the state after it."""


class Run:
    """The requests of one call. Whoever made it cancels it at last, however the call ends."""

    def __init__(self, bridge: Bridge, jobs: Sequence[Job]) -> None:
        self._bridge = bridge
        self.arrived = perf_counter()
        self.tickets = [_Ticket(self, index, job) for index, job in enumerate(jobs)]
        self._events: deque[tuple[int, Delta] | Exception] = deque()
        self._wake = asyncio.Event()
        self._times: dict[int, float] = {}

    def cancel(self) -> None:
        """End what has not ended by itself, before the engine's next step."""
        self._bridge.cancel(self)

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt positions computed so far, and of all."""
        tickets = self.tickets
        total = sum(len(t.job.prompt) for t in tickets)
        return sum(min(t.computed, len(t.job.prompt)) for t in tickets), total

    def request(self, index: int) -> Request:
        """The engine's request for job ``index``, once it has given a token."""
        request = self.tickets[index].request
        assert request is not None, "asked for before the first token"
        return request

    async def tokens(self, pause_s: float | None = None) -> AsyncIterator[tuple[int, Delta] | None]:
        """Tokens of all jobs as they come, each with its job's number; None after ``pause_s``
        seconds without one. Raises what ended the run before its time."""
        left = len(self.tickets)
        while left:
            if not self._events:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), pause_s)
                except asyncio.TimeoutError:
                    yield None
                continue
            event = self._events.popleft()
            if isinstance(event, Exception):
                raise event
            left -= event[1].finish_reason is not None
            yield event

    def deliver(self, index: int, event: Delta | Exception) -> None:
        """Take what the engine's thread sent. In the event loop's thread."""
        if isinstance(event, Exception):
            self._events.append(event)
        else:
            previous = self._times.get(index)
            self._times[index] = perf_counter()
            self._bridge.observer.on_token(self.arrived, previous, event)
            self._events.append((index, event))
        self._wake.set()


class Bridge:
    """The engine's thread and the way to it. ``queue`` requests may wait or run at once."""

    def __init__(self, engine: Engine, *, queue: int, observer: Observer) -> None:
        self._engine = engine
        self._queue = queue
        self.observer = observer
        self.status = engine.status()
        self.closing = False
        self._open = 0
        self._runs: set[Run] = set()
        self._notes: deque[Callable[[], None]] = deque()
        self._noted = threading.Condition()
        self._tickets: dict[Request, _Ticket] = {}
        self._out: list[tuple[_Ticket, Delta | Exception]] = []
        self._stop = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="strata-engine", daemon=True)

    def start(self) -> None:
        """Begin; to be called in the event loop that will use this bridge."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """End what runs and the thread; False if a step goes on beyond ``timeout_s``."""
        self.closing = True
        self._note(self._end)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def open(self) -> int:
        """Requests that wait or run."""
        return self._open

    def submit(self, jobs: Sequence[Job]) -> Run:
        """Start jobs together. UsageError if one can never be served, QueueFull or ShuttingDown."""
        if self.closing:
            raise ShuttingDown("the server is shutting down")
        for job in jobs:
            self._engine.limit(job.prompt, job.params)
        if self._open + len(jobs) > self._queue:
            raise QueueFull(f"{self._open} requests wait or run already; try again later")
        run = Run(self, jobs)
        self._runs.add(run)
        self._open += len(jobs)
        self._note(lambda: self._begin(run))
        return run

    def cancel(self, run: Run) -> None:
        """End what is left of a run. In the event loop's thread."""
        self._runs.discard(run)
        tickets = [t for t in run.tickets if not t.over]
        for ticket in tickets:
            self._close(ticket)
        if tickets:
            self._note(lambda: self._abandon(tickets))

    def cut_off(self) -> None:
        """End every run with ShuttingDown, not waiting for a step. In the event loop's thread."""
        for run in list(self._runs):
            tickets = [t for t in run.tickets if not t.over]
            self.cancel(run)
            for ticket in tickets:
                run.deliver(ticket.index, ShuttingDown("the server is shutting down"))

    def _close(self, ticket: _Ticket) -> None:
        if not ticket.over:
            ticket.over = True
            self._open -= 1

    def _note(self, note: Callable[[], None]) -> None:
        with self._noted:
            self._notes.append(note)
            self._noted.notify()

    # What follows runs in the engine's thread.

    def _work(self) -> None:
        while True:
            with self._noted:
                while not self._notes and not self._engine.busy:
                    self._noted.wait()
            while self._notes:
                self._notes.popleft()()
            seconds = self._step() if self._engine.busy else None
            self._send(seconds)
            if self._stop:
                return

    def _step(self) -> float:
        started = perf_counter()
        try:
            deltas = self._engine.step()
        except Exception as error:
            self._fail(error)
            deltas = []
        for delta in deltas:
            ticket = self._tickets.get(delta.request)
            if ticket is not None:
                if delta.finish_reason is not None:
                    del self._tickets[delta.request]
                self._out.append((ticket, delta))
        for request, ticket in self._tickets.items():
            if request.first_token is None:
                ticket.computed = self._engine.computed(request)
            else:
                ticket.computed = len(request.prompt)
        return perf_counter() - started

    def _begin(self, run: Run) -> None:
        for ticket in run.tickets:
            if ticket.over:
                continue
            job = ticket.job
            try:
                ticket.request = self._engine.submit(job.prompt, job.params, job.text)
            except Exception as error:
                self._out.append((ticket, error))
            else:
                self._tickets[ticket.request] = ticket

    def _abandon(self, tickets: Sequence[_Ticket]) -> None:
        for ticket in tickets:
            if ticket.request is not None and ticket.request in self._tickets:
                del self._tickets[ticket.request]
                self._engine.cancel(ticket.request)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, StrataError):
            _log.exception("a step of the engine failed")
        for request, ticket in self._tickets.items():
            self._engine.cancel(request)
            self._out.append((ticket, error))
        self._tickets.clear()

    def _end(self) -> None:
        self._stop = True
        self._fail(ShuttingDown("the server is shutting down"))

    def _send(self, seconds: float | None) -> None:
        """Hand all of a step to the event loop at once: waking it costs more than a token."""
        out, self._out = self._out, []
        assert self._loop is not None, "started before"
        try:
            self._loop.call_soon_threadsafe(self._receive, out, seconds, self._engine.status())
        except RuntimeError:
            # The loop has ended before this thread: nobody is left to hear.
            self._stop = True

    def _receive(
        self,
        out: Sequence[tuple[_Ticket, Delta | Exception]],
        seconds: float | None,
        status: EngineStatus,
    ) -> None:
        self.status = status
        if seconds is not None:
            self.observer.on_step(seconds, status)
        for ticket, event in out:
            if ticket.over:
                continue
            if isinstance(event, Exception) or event.finish_reason is not None:
                self._close(ticket)
            ticket.run.deliver(ticket.index, event)
