"""What the threads in use could reach at best, and what a step pays besides its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import strata._native as _native
from strata.backends.base import Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.program import Builder, Segment, Weight
from strata.records import dataclass

# More than the caches hold of it would be read again from there.
_BUFFER_BYTES = 256 << 20
_FEW_ROUNDS = 1000
_MULTIPLYING_S = 0.01
_TRIES = 5
_MANY_NODES = 257
_NODE_WIDTH = 8192


@dataclass(frozen=True)
class Roofline:
    """Bytes a second that plain reads of memory reach, and operations a second (two a multiply-add)
    of products of int8, bf16 and float32 numbers in registers, with ``threads`` threads."""

    threads: int
    read_bytes_s: float
    int8_ops_s: float
    bf16_ops_s: float
    f32_ops_s: float

    def multiply_ops_s(self, kind: str) -> float:
        """The rate for what a Segment's ``NodeTimes.multiplies`` says."""
        return {"int8": self.int8_ops_s, "bf16": self.bf16_ops_s, "f32": self.f32_ops_s}[kind]


@dataclass(frozen=True)
class StepOverhead:
    """Seconds of a native call that has next to nothing to do (Python, and waking the team), and
    what each node in it costs beyond the work of one thread, when every thread has an equal part
    of it: claiming, waiting for the slowest, going on together."""

    call_s: float
    node_s: float


def measure_roofline(threads: int, isa: str) -> Roofline:
    """The best of a few short runs: other programs can only make a run slower."""
    data = np.ones(_BUFFER_BYTES, np.uint8)
    edges = [len(data) * i // threads for i in range(threads + 1)]

    def read(i: int) -> int:
        _native.read_stream(isa, data[edges[i] : edges[i + 1]])
        return edges[i + 1] - edges[i]

    with ThreadPoolExecutor(threads) as pool:

        def rate(work: Callable[[int], int]) -> float:
            best = 0.0
            for _ in range(_TRIES):
                start = perf_counter()
                done = sum(pool.map(work, range(threads)))
                best = max(best, done / (perf_counter() - start))
            return best

        def multiply(kind: str) -> float:
            start = perf_counter()
            if not _native.multiply_peak(isa, kind, _FEW_ROUNDS):
                return 0.0
            # Long enough that starting the threads does not count.
            rounds = int(_FEW_ROUNDS * max(1.0, _MULTIPLYING_S / (perf_counter() - start)))
            return rate(lambda _: _native.multiply_peak(isa, kind, rounds))

        f32 = multiply("f32")
        return Roofline(threads, rate(read), multiply("int8"), multiply("bf16") or f32, f32)


def measure_overhead(threads: int, isa: str) -> StepOverhead:
    """Times Segments of one node and of many, on a team of their own and on a single thread."""
    alone, together = _idle(1, isa), _idle(threads, isa)
    call, many = together(1), together(_MANY_NODES)
    work = (alone(_MANY_NODES) - alone(1)) / (_MANY_NODES - 1)
    return StepOverhead(call, max(0.0, (many - call) / (_MANY_NODES - 1) - work))


def _idle(threads: int, isa: str) -> Callable[[int], float]:
    """Seconds of a call of so many nodes, each with some microseconds of work a thread."""
    backend = CpuBackend(threads, isa)
    rows = np.arange(threads, dtype=np.int32)
    span = Span(0, threads, 0, ())
    step = Step(rows, rows, (span,), np.zeros(0, np.int32))
    state = backend.state_cache((), ())

    def seconds(nodes: int) -> float:
        (loaded,) = backend.load([_scalings(nodes)], _NO_WEIGHTS)
        times = []
        for _ in range(30):
            start = perf_counter()
            backend.run(loaded, step, state, {})
            times.append(perf_counter() - start)
        return median(times)

    return seconds


def _scalings(nodes: int) -> Segment:
    builder = Builder("idle", _no_weight, {"x": ("T", _NODE_WIDTH)})
    x = "x"
    for _ in range(nodes):
        x = builder.scale(x, 1.5)
    return builder.build(x=x)


_NO_WEIGHTS: Any = None


def _no_weight(name: str) -> Weight:
    raise AssertionError(f"an idle segment has no weight '{name}'")
