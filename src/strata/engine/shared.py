"""One engine for several iterators, in one thread or in many: each gets the tokens of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock

from strata.decode import SamplingParams, TextStream
from strata.engine.engine import Engine
from strata.engine.request import Delta, Request
from strata.errors import StrataError, UsageError


@dataclass(frozen=True)
class Job:
    """What ``Engine.submit`` is to be given."""

    prompt: Sequence[int]
    params: SamplingParams
    text: TextStream | None = None


@dataclass
class _Caller:
    """One iterator: its jobs that are not submitted yet, its requests with the number of each."""

    waiting: deque[tuple[int, Job]]
    running: dict[Request, int] = field(default_factory=dict)
    came: list[tuple[int, Delta]] = field(default_factory=list)


class SharedEngine:
    """Runs jobs on an engine. Iterators take turns of one step, in which all requests advance."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._turn = RLock()
        self._stepping = False
        self._callers: list[_Caller] = []
        self._left: deque[Request] = deque()

    @property
    def engine(self) -> Engine:
        """The engine; UsageError once it is closed."""
        if self._engine is None:
            raise UsageError("this LLM is closed; make another one")
        return self._engine

    @contextmanager
    def alone(self) -> Iterator[Engine]:
        """The engine between two steps, for one thread."""
        with self._turn:
            yield self.engine

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Delta]]:
        """Tokens of all jobs as they come, each with its job's number.

        An iterator that is left cancels what it began. StrataError if a failure in another one
        ended a request of this one.
        """
        caller = _Caller(deque(enumerate(jobs)))
        self._callers.append(caller)
        try:
            while caller.waiting or caller.running or caller.came:
                with self._turn:
                    came, cut_off = self._advance(caller)
                yield from came
                if cut_off:
                    raise StrataError("this answer was cut off by a failure in another one")
        finally:
            self._callers.remove(caller)
            self._left.extend(caller.running)
            self._cancel_left()

    def close(self) -> None:
        """End all requests and close the engine, after the step that is under way."""
        with self._turn:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    def _advance(self, caller: _Caller) -> tuple[list[tuple[int, Delta]], bool]:
        """One turn: what has come for the caller, and whether a request of it was cut off."""
        engine = self.engine
        self._cancel_left()
        while caller.waiting and not engine.queue_full:
            number, job = caller.waiting.popleft()
            caller.running[engine.submit(job.prompt, job.params, job.text)] = number
        # What came in another iterator's turn is handed over before there is more.
        if not caller.came:
            self._stepping = True
            try:
                self._hand_out(engine.step())
            finally:
                self._stepping = False
        came, caller.came = caller.came, []
        cut_off = any(request.cancelled for request in caller.running)
        return came, cut_off

    def _hand_out(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            for caller in self._callers:
                if delta.request in caller.running:
                    caller.came.append((caller.running[delta.request], delta))
                    if delta.finish_reason is not None:
                        del caller.running[delta.request]

    def _cancel_left(self) -> None:
        # An iterator may be left, or collected, in the middle of another one's step: then later.
        if self._turn.acquire(blocking=False):
            try:
                while self._left and self._engine is not None and not self._stepping:
                    self._engine.cancel(self._left.popleft())
            finally:
                self._turn.release()
