"""The driver over an engine that only counts: who gets what, whoever steps, fails or leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from strata.decode import Sample, Sampler, SamplingParams, StopChecker, TextStream
from strata.engine import Delta, Driver, Engine, EngineStatus, Job, Request, Run, Turn
from strata.errors import StrataError, UsageError

VOCABULARY = 1000


@dataclass
class CountingEngine:
    """Answers with the first token of the prompt plus the number of the answer's token. Fails if
    two threads are in it at a time, or if it is called in the middle of its step."""

    queue: int = 1000
    submitted: int = 0
    steps: int = 0
    closed: bool = False
    running: list[Request] = field(default_factory=list)
    errors: dict[int, StrataError] = field(default_factory=dict)
    searching: bool = False
    held_up: bool = False
    during: Callable[[CountingEngine], None] = lambda engine: None
    after: Callable[[CountingEngine], None] = lambda engine: None
    _inside: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        assert self._inside.acquire(blocking=False), "two at a time"
        try:
            assert not self.closed
            yield
        finally:
            self._inside.release()

    @property
    def busy(self) -> bool:
        return bool(self.running)

    @property
    def idle(self) -> bool:
        return not (self.running or self.searching)

    @property
    def queue_full(self) -> bool:
        return len(self.running) >= self.queue

    def limit(self, prompt: Sequence[int], params: SamplingParams) -> int:
        if not prompt:
            raise UsageError("the prompt is empty")
        return params.max_tokens or 1

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, text: TextStream | None = None
    ) -> Request:
        with self._entered():
            assert not self.queue_full
            limit = self.limit(prompt, params)
            if prompt[0] == VOCABULARY:
                raise UsageError("no such token")
            checker = StopChecker(params, frozenset(), limit, text)
            sampler = Sampler(params, prompt, VOCABULARY)
            request = Request(self.submitted, tuple(prompt), sampler, checker, time.perf_counter())
            self.submitted += 1
            self.running.append(request)
            return request

    def cancel(self, request: Request) -> None:
        with self._entered():
            if request in self.running:
                request.cancelled = True
                self.running.remove(request)

    def step(self) -> list[Delta]:
        with self._entered():
            self.steps += 1
            self.held_up = self.searching and self.busy
            if self.held_up:
                return []
            self.during(self)
            deltas = [self._advance(request) for request in list(self.running)]
            self.after(self)
            return deltas

    def _advance(self, request: Request) -> Delta:
        error = self.errors.get(request.prompt[0])
        sample = Sample(request.prompt[0] + len(request.output), None, ())
        if error is not None and len(request.output) == 2:
            request.cancelled = True
            self.running.remove(request)
            return Delta(request, sample, "", None, error)
        request.output.append(sample)
        text, request.finish_reason = request.stop_checker.push(sample.token)
        if request.finish_reason is not None:
            self.running.remove(request)
        return Delta(request, sample, text, request.finish_reason)

    def computed(self, request: Request) -> int:
        return min(len(request.prompt), self.steps)

    def status(self) -> EngineStatus:
        return EngineStatus(0, len(self.running), 1, 1, self.steps, 0, None, 0, 0, 0, 0)

    def close(self) -> None:
        with self._entered():
            self.closed = True


def driver_of(engine: CountingEngine) -> Driver:
    return Driver(cast(Engine, engine))


def job(first: int, tokens: int) -> Job:
    return Job([first, 1, 1], SamplingParams(max_tokens=tokens))


def tokens(run: Run) -> dict[int, list[int]]:
    """Tokens by job."""
    found: dict[int, list[int]] = {}
    for index, delta in run:
        found.setdefault(index, []).append(delta.sample.token)
    return found


def ask(driver: Driver, first: int, count: int) -> list[int]:
    with driver.submit([job(first, count)]) as run:
        return tokens(run)[0]


@pytest.fixture(params=["own", "thread"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Driven by those who wait, or by a thread."""
    made = driver_of(CountingEngine())
    if request.param == "thread":
        made.start(lambda turn: None)
    yield made
    assert made.stop(20)


def engine_of(driver: Driver) -> CountingEngine:
    return cast(CountingEngine, driver.engine)


def take_time(engine: CountingEngine) -> None:
    """A step as long as others need to come between."""
    time.sleep(0.001)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.001)


def test_each_gets_its_own_in_order(driver: Driver) -> None:
    def call(number: int) -> None:
        with driver.submit([job(10 * number, 3 + number % 5), job(10 * number + 5, 4)]) as run:
            count = 3 + number % 5
            assert tokens(run) == {
                0: list(range(10 * number, 10 * number + count)),
                1: list(range(10 * number + 5, 10 * number + 9)),
            }

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call, number) for number in range(60)]:
            done.result(60)
    assert not engine_of(driver).busy


def test_a_run_of_nothing_is_over_at_once(driver: Driver) -> None:
    assert tokens(driver.submit([])) == {}


def test_what_comes_in_the_turn_of_another_waits_for_its_owner() -> None:
    driver = driver_of(CountingEngine())
    first, second = driver.submit([job(10, 3)]), driver.submit([job(20, 3)])
    assert tokens(first) == {0: [10, 11, 12]}
    assert engine_of(driver).steps == 3
    assert tokens(second) == {0: [20, 21, 22]}
    assert engine_of(driver).steps == 3


def test_jobs_beyond_the_queue_wait(driver: Driver) -> None:
    engine_of(driver).queue = 2
    run = driver.submit([job(10 * n, 3) for n in range(20)])
    assert tokens(run) == {n: [10 * n, 10 * n + 1, 10 * n + 2] for n in range(20)}


def test_a_request_that_fails_ends_alone(driver: Driver) -> None:
    engine_of(driver).errors[10] = StrataError("not finite")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(ask, driver, 30, 50)
        run = driver.submit([job(10, 5), job(20, 5)])
        got: list[tuple[int, int]] = []
        with pytest.raises(StrataError, match="not finite"):
            got.extend((index, delta.sample.token) for index, delta in run)
        assert sorted(got) == [(0, 10), (0, 11), *((1, 20 + n) for n in range(5))]
        assert other.result(20) == list(range(30, 80))
    assert not engine_of(driver).busy


def test_what_cannot_be_submitted_is_told_to_its_caller(driver: Driver) -> None:
    with pytest.raises(UsageError, match="empty"):
        driver.check([Job([], SamplingParams())])
    others = driver.submit([job(10, 4)])
    wrong = driver.submit([job(VOCABULARY, 3)])
    assert tokens(others) == {0: [10, 11, 12, 13]}
    with pytest.raises(UsageError, match="no such token"):
        tokens(wrong)


def test_a_step_that_fails_ends_all_that_run() -> None:
    driver = driver_of(CountingEngine())
    engine = engine_of(driver)
    first, second = driver.submit([job(10, 9)]), driver.submit([job(20, 9)])
    assert next(iter(first))[1].sample.token == 10

    def fail(engine: CountingEngine) -> None:
        engine.during = lambda engine: None
        raise MemoryError("nothing left")

    engine.during = fail
    with pytest.raises(MemoryError, match="nothing left"):
        tokens(first)
    with pytest.raises(StrataError, match="cut off") as told:
        tokens(second)
    assert isinstance(told.value.__cause__, MemoryError)
    assert not engine.busy
    assert ask(driver, 30, 3) == [30, 31, 32]


def test_a_driving_thread_survives_failures(caplog: pytest.LogCaptureFixture) -> None:
    driver = driver_of(CountingEngine())
    engine = engine_of(driver)
    errors: list[Exception] = [StrataError("the disk is gone"), ZeroDivisionError("a mistake")]

    def fail(engine: CountingEngine) -> None:
        if errors:
            raise errors.pop(0)

    engine.during = fail
    driver.start(lambda turn: None)
    for message in ("the disk is gone", "cut off"):
        with pytest.raises(StrataError, match=message):
            ask(driver, 10, 3)
    assert ask(driver, 10, 3) == [10, 11, 12]
    assert driver.stop(20)
    # Only what nobody foresaw.
    assert "a mistake" in caplog.text
    assert "the disk" not in caplog.text


@pytest.mark.parametrize("when", ["during", "after"])
def test_an_interrupt_ends_only_who_lost_something(when: str) -> None:
    driver = driver_of(CountingEngine())
    engine = engine_of(driver)
    mine, other = driver.submit([job(10, 5)]), driver.submit([job(20, 5)])
    found = iter(mine)
    assert next(found)[1].sample.token == 10

    def interrupt(engine: CountingEngine) -> None:
        setattr(engine, when, lambda engine: None)
        raise KeyboardInterrupt

    setattr(engine, when, interrupt)
    with pytest.raises(KeyboardInterrupt), mine:
        next(found)
    if when == "during":
        assert tokens(other) == {0: [20, 21, 22, 23, 24]}
    else:
        # Its second token was chosen, and is nowhere.
        with pytest.raises(StrataError, match="cut off"):
            tokens(other)
    assert not engine.busy
    assert ask(driver, 30, 2) == [30, 31]


def test_who_leaves_is_cancelled_before_the_next_step(driver: Driver) -> None:
    engine = engine_of(driver)
    stays, leaves = driver.submit([job(10, 300)]), driver.submit([job(500, 10**9)])
    for _, delta in stays:
        if delta.sample.token == 12:
            leaves.cancel()
    assert leaves.over
    wait_until(lambda: not engine.busy)


def test_an_iterator_that_is_collected_in_a_step_is_cancelled_after_it() -> None:
    driver = driver_of(CountingEngine())
    engine = engine_of(driver)
    stays, leaves = driver.submit([job(10, 5)]), driver.submit([job(20, 50)])
    found = iter(stays)
    next(found)
    engine.during = lambda engine: leaves.cancel()
    next(found)
    engine.during = lambda engine: None
    assert [request.prompt[0] for request in engine.running] == [10]
    assert len(list(found)) == 3


def test_a_run_cancelled_before_it_began_never_begins() -> None:
    driver = driver_of(CountingEngine())
    driver.submit([job(10, 5)]).cancel()
    assert ask(driver, 20, 2) == [20, 21]
    assert engine_of(driver).submitted == 1


def test_alone_nobody_steps(driver: Driver) -> None:
    engine = engine_of(driver)
    engine.during = take_time
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, driver, first, 400) for first in (10, 500)]
        wait_until(lambda: engine.steps > 5)
        for _ in range(10):
            with driver.alone():
                assert engine.busy
                before = engine.steps
                time.sleep(0.003)
                assert engine.steps == before
        assert [call.result(20) for call in calls] == [
            list(range(10, 410)),
            list(range(500, 900)),
        ]


def test_an_idle_engine_has_nothing_to_lose(driver: Driver) -> None:
    engine = engine_of(driver)
    left = iter(driver.submit([job(10, 30)]))
    next(left)
    with driver.alone(idle=True):
        assert not engine.busy
        # Steps that the driver does not see.
        own = cast(Any, engine).submit([50, 1], SamplingParams(max_tokens=3))
        while not own.done:
            engine.step()
    assert [delta.sample.token for _, delta in left] == list(range(11, 40))


@pytest.fixture
def searching(driver: Driver) -> Iterator[CountingEngine]:
    """The driver's engine, all of whose KV is a search's until the test says otherwise."""
    engine = engine_of(driver)
    engine.searching = True
    yield engine
    engine.searching = False


def test_nobody_spins_beside_a_search(driver: Driver, searching: CountingEngine) -> None:
    """One step finds that it holds all, and one more each time that it has gone on."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, driver, 10, 5)
        try:
            for steps in (1, 2, 3):
                wait_until(lambda steps=steps: searching.steps >= steps)  # type: ignore[misc]
                time.sleep(0.01)
                assert searching.steps == steps
                with driver.alone():
                    pass
            # Who leaves wakes the others: there may be room for them.
            driver.submit([job(20, 5)]).cancel()
            time.sleep(0.01)
            assert searching.steps <= 6
        finally:
            with driver.alone():
                searching.searching = False
        assert answer.result(20) == list(range(10, 15))


def test_who_is_alone_when_all_is_idle_lets_searches_end(
    driver: Driver, searching: CountingEngine
) -> None:
    idle: list[bool] = []

    def when_idle() -> None:
        with driver.alone(idle=True) as engine:
            idle.append(engine.idle)

    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(ask, driver, 10, 5)
        try:
            wait_until(lambda: searching.steps > 0)
            waiting = pool.submit(when_idle)
            for _ in range(5):
                time.sleep(0.002)
                with driver.alone():
                    assert not idle
        finally:
            with driver.alone():
                searching.searching = False
        waiting.result(20)
        assert answer.result(20) == list(range(10, 15))
    assert idle == [True]


def test_closing_tells_all_who_wait(driver: Driver) -> None:
    engine = engine_of(driver)
    engine.during = take_time
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(ask, driver, 1 + first, 50_000) for first in range(6)]
        wait_until(lambda: len(engine.running) == 6 and engine.steps > 3)
        driver.close()
        assert engine.closed
        for call in calls:
            with pytest.raises(UsageError, match="closed"):
                call.result(20)
    driver.close()
    with pytest.raises(UsageError, match="closed"):
        driver.submit([job(10, 1)])


def test_the_thread_tells_of_every_turn() -> None:
    driver = driver_of(CountingEngine())
    turns: list[Turn] = []
    driver.start(turns.append)
    with pytest.raises(UsageError, match="already"):
        driver.start(turns.append)
    run = driver.submit([job(10, 3)])
    wait_until(lambda: run.over)
    assert [delta.sample.token for _, delta in run.take()] == [10, 11, 12]
    assert run.progress == (3, 3)
    assert driver.stop(20)
    steps = [turn for turn in turns if turn.seconds is not None]
    assert len(steps) == 3
    assert all(turn.runs == {run} for turn in steps)
    assert steps[-1].status.sweeps == 3


def test_who_waits_drives_when_the_thread_has_stopped() -> None:
    driver = driver_of(CountingEngine(during=take_time))
    driver.start(lambda turn: None)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, driver, 10, 500)
        wait_until(lambda: engine_of(driver).steps > 5)
        assert driver.stop(20)
        assert engine_of(driver).busy
        assert call.result(20) == list(range(10, 510))
    # And another thread may come.
    driver.start(lambda turn: None)
    assert ask(driver, 20, 2) == [20, 21]
    assert driver.stop(20)


def test_progress_of_a_prompt() -> None:
    driver = driver_of(CountingEngine())
    engine = engine_of(driver)
    run = driver.submit([job(10, 2), job(20, 2)])
    assert run.progress == (0, 6)
    seen = []
    engine.after = lambda engine: seen.append(run.progress)
    tokens(run)
    assert seen == [(0, 6), (6, 6)]
