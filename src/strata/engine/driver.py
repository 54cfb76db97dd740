"""The one way to an engine: jobs go in from any thread, and each caller gets the tokens of its own.

One thread at a time has the *turn*: it drops what was cancelled, submits what is new, runs a step
of the engine and hands its tokens out. Whoever waits for tokens takes the turn itself, so that a
program with one thread needs no other. While a thread drives for a server, all others only wait.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, RLock, Thread
from time import perf_counter
from types import TracebackType

from strata.decode import SamplingParams, TextStream
from strata.engine.engine import Engine
from strata.engine.request import Delta, Request
from strata.engine.status import EngineStatus
from strata.errors import StrataError, UsageError
from strata.records import dataclass

_log = logging.getLogger("strata.engine")


@dataclass(frozen=True)
class Job:
    """A sequence to be continued: what ``Engine.submit`` is to be given. With ``progress`` whoever
    waits for it is also woken when its prompt has come further."""

    prompt: Sequence[int]
    params: SamplingParams
    text: TextStream | None = None
    progress: bool = False


@dataclass(eq=False)
class _Ticket:
    """Job number ``index`` of a run: its request once the engine has it, the positions of its
    prompt computed so far, and its tokens given so far. Belongs to the thread with the turn."""

    run: Run
    index: int
    job: Job
    request: Request | None = None
    computed: int = 0
    given: int = 0
    over: bool = False


class Run:
    """The jobs of one call and what came of them. Whoever made it cancels it at last, as ``with``
    does: a run that is left would be computed to its end."""

    def __init__(self, driver: Driver, jobs: Sequence[Job]) -> None:
        self._driver = driver
        self.jobs = tuple(jobs)
        self.tickets = tuple(_Ticket(self, index, job) for index, job in enumerate(jobs))
        self.open = len(self.jobs)
        self.cancelled = False
        self._came: deque[tuple[int, Delta]] = deque()
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[tuple[int, Delta]]:
        """Tokens of all jobs as they come, each with its job's number. A job that fails ends
        alone; its error is raised when the others are done."""
        over = False
        while not over:
            # Asked for first: what comes with the end is there by then.
            over = self.over
            yield from self.take()
            if not over:
                self._driver.wait_for(self)
        self.check()

    def take(self) -> Iterator[tuple[int, Delta]]:
        """What has come and was not taken yet, without waiting. For one thread."""
        while self._came:
            yield self._came.popleft()

    def check(self) -> None:
        """Raise what ended a job before its time, if anything did."""
        if self._error is not None:
            raise self._error

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.cancelled or not self.open

    @property
    def waiting(self) -> bool:
        """Whether something will come but nothing is there."""
        return not self._came and not self.over

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt positions computed so far, and of all."""
        done = sum(min(ticket.computed, len(ticket.job.prompt)) for ticket in self.tickets)
        return done, sum(len(job.prompt) for job in self.jobs)

    def cancel(self) -> None:
        """End what has not ended by itself, before the engine's next step. From any thread."""
        if not self.over:
            self.cancelled = True
            self._driver.drop(self)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def give(self, ticket: _Ticket, delta: Delta) -> None:
        """Hand over a token. With the turn."""
        ticket.given += 1
        self._came.append((ticket.index, delta))
        if delta.finish_reason is not None:
            self.end(ticket)

    def end(self, ticket: _Ticket, error: Exception | None = None) -> None:
        """Nothing more will come of a job, because of ``error`` if there is one. With the turn."""
        if not ticket.over:
            self._error = self._error or error
            ticket.over = True
            self.open -= 1


@dataclass(frozen=True)
class Turn:
    """What the thread of ``Driver.start`` has done: the length of its step, if there was one, the
    runs for which something came, and the engine's state afterwards."""

    seconds: float | None
    runs: frozenset[Run]
    status: EngineStatus


class Driver:
    """Owns an engine and runs jobs on it. Any thread may call."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        # Entered by ``with``: an interrupt cannot come between that and taking it.
        self._turn = RLock()
        self._in_use = False
        self._new: deque[_Ticket] = deque()
        self._dropped: deque[Run] = deque()
        self._running: dict[Request, _Ticket] = {}
        self._lock = RLock()
        self._changed = Condition(self._lock)
        self._thread: Thread | None = None
        self._stopping = False
        self._touched: set[Run] = set()
        self._asking = 0
        # How often somebody was at the engine alone or left, and as of which time searches held the
        # KV that requests need: nothing can be done before the next.
        self._visits = 0
        self._held_up_at = -1

    @property
    def engine(self) -> Engine:
        """The engine; UsageError once it is closed."""
        if self._engine is None:
            raise UsageError("this LLM is closed; make another one")
        return self._engine

    def check(self, jobs: Iterable[Job]) -> None:
        """UsageError if one of ``jobs`` can never be served."""
        for job in jobs:
            self.engine.limit(job.prompt, job.params)

    def submit(self, jobs: Sequence[Job]) -> Run:
        """Start jobs together. Those for which the engine's queue has no room wait here."""
        run = Run(self, jobs)
        self._new.extend(run.tickets)
        # Asked for afterwards: who closes it meanwhile finds what is new, or it is told here.
        assert self.engine
        self._tell()
        return run

    @contextmanager
    def alone(self, *, idle: bool = False) -> Iterator[Engine]:
        """The engine between two steps, for one thread. ``idle``: when all that runs has ended,
        searches of other threads as well, for those who run steps of it themselves."""
        while True:
            with self._next_turn(), self._using():
                engine = self.engine
                while idle and engine.busy:
                    self._drop_all()
                    self._step(engine)
                    if self._held_up:
                        break
                if not idle or engine.idle:
                    try:
                        yield engine
                    finally:
                        self._visits += 1
                    return
                seen = self._visits
            # A search goes on, which is other threads' visits.
            with self._lock:
                while self._visits == seen:
                    self._changed.wait()

    def close(self) -> None:
        """End everything with a UsageError and close the engine, after the step under way."""
        with self._next_turn(), self._using():
            engine, self._engine = self._engine, None
            if engine is None:
                return
            self._visits += 1
            error = UsageError("this LLM was closed before the answer ended")
            for ticket in self._running.values():
                self._end(ticket, error)
            self._running.clear()
            while self._new:
                self._end(self._new.popleft(), error)
            engine.close()

    def start(self, listener: Callable[[Turn], None]) -> None:
        """Drive in a thread of its own, which calls ``listener`` after every turn."""
        if self._thread is not None:
            raise UsageError("a server has this LLM already")
        self._stopping = False
        self._thread = Thread(
            target=self._drive, args=(listener,), name="strata-engine", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End that thread; False if a step goes on for longer. Others drive for themselves then."""
        thread = self._thread
        if thread is None:
            return True
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
        thread.join(timeout_s)
        self._drop_if_free()
        return not thread.is_alive()

    def wait_for(self, run: Run) -> None:
        """Return when something has come for a run, or earlier. Drives, unless a thread does; then
        raises what a failing step raised."""
        if self._thread is not None:
            with self._lock:
                while self._thread is not None and run.waiting:
                    self._changed.wait()
            return
        with self._turn:
            # What came in the turn of another is taken before there is more.
            if run.waiting and self._thread is None:
                self._advance()
        self._drop_if_free()
        with self._lock:
            while self._held_up and run.waiting and self._thread is None:
                self._changed.wait()

    def drop(self, run: Run) -> None:
        """Cancel a run before the next step. Also called when an iterator is collected, which may
        be in the middle of anything, a step of the same thread included."""
        self._dropped.append(run)
        self._tell()
        self._drop_if_free()

    def _tell(self) -> None:
        with self._lock:
            self._changed.notify_all()

    @property
    def _held_up(self) -> bool:
        return self._held_up_at == self._visits

    @contextmanager
    def _next_turn(self) -> Iterator[None]:
        """The turn, which the driving thread would take again and again."""
        with self._lock:
            self._asking += 1
        try:
            with self._turn:
                yield
        finally:
            with self._lock:
                self._asking -= 1
                self._changed.notify_all()
            self._drop_if_free()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Nothing is cancelled meanwhile, also not by this thread."""
        before, self._in_use = self._in_use, True
        try:
            yield
        finally:
            self._in_use = before

    def _drop_if_free(self) -> None:
        # Otherwise who has the turn does it afterwards, and the driving thread when it is told.
        while (
            self._dropped
            and self._thread is None
            and not self._in_use
            and self._turn.acquire(blocking=False)
        ):
            try:
                with self._using():
                    self._drop_all()
            finally:
                self._turn.release()

    # What follows is done with the turn.

    def _advance(self) -> float | None:
        """One turn; the seconds of its step, None if there was nothing to do."""
        engine = self.engine
        with self._using():
            self._drop_all()
            self._admit(engine)
            return self._step(engine) if engine.busy else None

    def _drop_all(self) -> None:
        while self._dropped:
            for ticket in self._dropped[0].tickets:
                if not ticket.over:
                    self._forget(ticket)
                    ticket.run.end(ticket)
            self._dropped.popleft()
            self._visits += 1
            self._tell()

    def _admit(self, engine: Engine) -> None:
        while self._new and not engine.queue_full:
            ticket = self._new[0]
            if not ticket.over and ticket.request is None:
                job = ticket.job
                try:
                    ticket.request = engine.submit(job.prompt, job.params, job.text)
                except Exception as error:
                    self._end(ticket, error)
                else:
                    self._running[ticket.request] = ticket
            self._new.popleft()

    def _step(self, engine: Engine) -> float:
        started = perf_counter()
        try:
            self._hand_out(engine.step())
            self._held_up_at = self._visits if engine.held_up else -1
        except Exception as error:
            # Whom it concerns is not known; a request that fails alone has it in its Delta.
            self._cut_off(list(self._running.values()), error)
            raise
        except BaseException as error:
            # An interrupt is for this thread. Who lost nothing by it goes on.
            self._cut_off([t for t in self._running.values() if _lost_something(t)], error)
            raise
        for request, ticket in self._running.items():
            if not ticket.given:
                before, ticket.computed = ticket.computed, engine.computed(request)
                if ticket.job.progress and ticket.computed != before:
                    self._touch(ticket.run)
        return perf_counter() - started

    def _hand_out(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            ticket = self._running.get(delta.request)
            if ticket is None:
                continue
            if delta.error is not None:
                self._end(ticket, delta.error)
            else:
                ticket.computed = len(ticket.job.prompt)
                self._touch(ticket.run)
                ticket.run.give(ticket, delta)
            if ticket.over:
                del self._running[delta.request]

    def _cut_off(self, tickets: Iterable[_Ticket], error: BaseException) -> None:
        known = error
        if not isinstance(known, StrataError):
            known = StrataError("this answer was cut off by a failure of the engine")
            known.__cause__ = error
        for ticket in tickets:
            self._forget(ticket)
            self._end(ticket, known)

    def _end(self, ticket: _Ticket, error: Exception) -> None:
        self._touch(ticket.run)
        ticket.run.end(ticket, error)

    def _forget(self, ticket: _Ticket) -> None:
        if ticket.request in self._running and self._engine is not None:
            self._engine.cancel(ticket.request)
            del self._running[ticket.request]

    def _touch(self, run: Run) -> None:
        if self._thread is not None:
            self._touched.add(run)

    # What follows runs in the driving thread.

    def _drive(self, listener: Callable[[Turn], None]) -> None:
        status = self.engine.status()
        try:
            while True:
                with self._lock:
                    self._changed.wait_for(self._wanted)
                if self._stopping:
                    break
                with self._turn:
                    seconds = None
                    if self._engine is not None:
                        seconds = self._advance_and_log()
                        status = self._engine.status()
                    runs, self._touched = frozenset(self._touched), set()
                with self._lock:
                    self._changed.notify_all()
                listener(Turn(seconds, runs, status))
                # While nothing is to be done, nothing of what is over is held.
                del runs
        finally:
            with self._lock:
                self._thread = None
                self._changed.notify_all()

    def _wanted(self) -> bool:
        """Whether there is something to do for the driving thread."""
        if self._stopping or self._asking:
            return self._stopping
        if self._touched or self._engine is None:
            return bool(self._touched)
        if self._held_up:
            return bool(self._dropped) or (bool(self._new) and not self._engine.queue_full)
        return bool(self._new or self._dropped) or self._engine.busy

    def _advance_and_log(self) -> float | None:
        try:
            return self._advance()
        except Exception as error:
            if not isinstance(error, StrataError):
                _log.exception("a step of the engine failed")
            return None


def _lost_something(ticket: _Ticket) -> bool:
    """Whether the engine went further with a request than its run was told."""
    request = ticket.request
    return request is not None and (request.cancelled or len(request.output) != ticket.given)
