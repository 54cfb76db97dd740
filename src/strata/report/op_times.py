"""Where the time of a step goes: by Op, beside the bytes and operations that the Op stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from time import perf_counter

import numpy as np

from strata.backends.base import KV_BLOCK, NodeTimes, Span, Step
from strata.decode import SamplingParams
from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.machine.roofline import Roofline
from strata.program import Cost, Op, PagedKV, Segment
from strata.records import dataclass


@dataclass(frozen=True)
class _TimedSegment:
    """A loaded Segment and the times of its nodes."""

    segment: Segment
    nodes: NodeTimes


@dataclass(frozen=True)
class OpTime:
    """Nodes of one kind and with the same weights, over all layers, a step.

    ``name`` is the kind of Op, with the weights of products; ``head`` if it is the head's.
    ``bytes`` and ``flops`` are those of all Ops that were fused into the nodes. ``limit_s`` is the
    time in which the machine could at best read the weights and KV or do the products; activations
    stay in the caches. ``seconds`` includes waiting for the slowest thread.
    """

    name: str
    kind: str
    head: bool
    nodes: int
    seconds: float
    bytes: int
    flops: int
    limit_s: float


@dataclass(frozen=True)
class StepTimes:
    """The times of a step: ``tokens`` of a sequence at ``depth``, chosen token included.

    ``step_s`` is the wall-clock time of the engine's step or steps, ``calls`` the number of native
    calls, and ``ops`` are sorted by time.
    """

    tokens: int
    depth: int
    step_s: float
    calls: int
    ops: tuple[OpTime, ...]

    @property
    def ops_s(self) -> float:
        """Seconds within Ops."""
        return sum(op.seconds for op in self.ops)

    @property
    def nodes(self) -> int:
        """Nodes a step."""
        return sum(op.nodes for op in self.ops)


DECODED = 8
"""Tokens whose mean time is that of decoding."""


def context_for_ops(*, depth: int) -> int:
    """Positions that ``time_ops`` needs to decode."""
    return max(depth, 1) + DECODED + 1


def check_times_ops(engine: Engine) -> None:
    """UsageError unless the backend measures its nodes."""
    if any(segment.node_times is None for segment in engine.runner.loaded):
        raise UsageError(
            f"the {engine.runner.backend.name} backend does not measure times of single Ops; the "
            "cpu backend does"
        )


def time_ops(
    engine: Engine, roofline: Roofline, *, prompt: int, depth: int, repeat: int
) -> tuple[StepTimes | None, StepTimes]:
    """Times of prefilling ``prompt`` tokens (None for 0) and of decoding a token after ``depth``.

    Decoding is the mean of eight tokens a repetition; of the repetitions the one whose step was the
    fastest is reported, and its step and Op times belong together. UsageError if the backend does
    not measure its nodes.
    """
    check_times_ops(engine)
    loaded = engine.runner.loaded
    timed = [_TimedSegment(s.segment, s.node_times) for s in loaded if s.node_times is not None]
    clock = _Clock(engine, timed, roofline)
    vocabulary = engine.runner.model.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, max(prompt, depth, 1)).tolist()
    for segment in timed:
        segment.nodes.set_timing(True)
    try:
        clock.decode(ids[: max(depth, 1)])  # warms up
        decode = [clock.decode(ids[: max(depth, 1)]) for _ in range(repeat)]
        prefill = [clock.prefill(ids[:prompt]) for _ in range(repeat if prompt else 0)]
    finally:
        for segment in timed:
            segment.nodes.set_timing(False)
    fastest = min(decode, key=lambda times: times.step_s)
    return min(prefill, key=lambda times: times.step_s, default=None), fastest


class _Clock:
    def __init__(self, engine: Engine, timed: Sequence[_TimedSegment], roofline: Roofline) -> None:
        self._engine, self._timed, self._roofline = engine, timed, roofline
        model = engine.runner.model
        paged = [layer for layer in model.state if isinstance(layer, PagedKV)]
        elements = KV_BLOCK * sum(layer.elements for layer in paged)
        nbytes = sum(
            engine.kv_type.block_nbytes(model.state, g) for g in model.groups if not g.recurrent
        )
        self._kv_bytes = nbytes / max(elements, 1)

    def prefill(self, ids: Sequence[int]) -> StepTimes:
        self._engine.forget_prefixes()
        self._take()
        before = self._engine.status().tokens
        seconds, rows = self._advance(ids, 1)
        # Times of fewer tokens than were asked for must not pass for theirs.
        assert self._engine.status().tokens - before == len(ids)
        # A step may end early, where a state of fixed size is kept.
        ends = itertools.accumulate(rows)
        planned = [
            _step(end - count, count, end >= len(ids))
            for count, end in zip(rows, ends, strict=True)
        ]
        return self._times(planned, len(ids), 0, seconds, 1)

    def decode(self, ids: Sequence[int]) -> StepTimes:
        request = self._engine.submit(ids, SamplingParams(max_tokens=DECODED + 1, ignore_eos=True))
        try:
            while not request.output:
                self._engine.step()
            self._take()
            start = perf_counter()
            while not request.done:
                self._engine.step()
            seconds = perf_counter() - start
        finally:
            self._engine.cancel(request)
        planned = [_step(len(ids) + i, 1, True) for i in range(DECODED)]
        return self._times(planned, 1, len(ids), seconds, DECODED)

    def _advance(self, ids: Sequence[int], tokens: int) -> tuple[float, list[int]]:
        request = self._engine.submit(ids, SamplingParams(max_tokens=tokens, ignore_eos=True))
        rows: list[int] = []
        start = perf_counter()
        try:
            while not request.done:
                before = self._engine.status().tokens
                self._engine.step()
                rows.append(self._engine.status().tokens - before)
            return perf_counter() - start, rows
        finally:
            self._engine.cancel(request)

    def _take(self) -> list[list[tuple[str, float]]]:
        return [segment.nodes.take_times() for segment in self._timed]

    def _times(
        self, steps: Sequence[Step], tokens: int, depth: int, seconds: float, repeats: int
    ) -> StepTimes:
        """All of ``steps`` as ``repeats`` steps of the same kind."""
        costs: dict[tuple[str, str], Cost] = {}
        for step in steps:
            for key, cost in self._engine.runner.count(step, self._kv_bytes).items():
                costs[key] = costs.get(key, Cost()) + cost
        groups: dict[tuple[bool, str, str], list[_Node]] = {}
        for segment, times in zip(self._timed, self._take(), strict=True):
            head = segment is self._timed[-1]
            for (kind, spent), ops in zip(times, segment.nodes.node_parts, strict=True):
                group = (head, kind, _label(kind, ops))
                groups.setdefault(group, []).append(self._node(segment, ops, spent, costs))
        # The head does not run in steps that want no logits.
        wanted = sum(len(step.logits_indices) > 0 for step in steps)
        runs = {False: len(steps), True: wanted}
        found = [
            OpTime(
                name=label,
                kind=kind,
                head=head,
                nodes=len(nodes) * runs[head] // repeats,
                seconds=sum(n.seconds for n in nodes) / repeats,
                bytes=sum(n.bytes for n in nodes) // repeats,
                flops=sum(n.flops for n in nodes) // repeats,
                limit_s=sum(n.limit_s for n in nodes) / repeats,
            )
            for (head, kind, label), nodes in groups.items()
        ]
        found.sort(key=lambda op: -op.seconds)
        calls = sum(self._engine.runner.calls(step) for step in steps)
        return StepTimes(tokens, depth, seconds / repeats, calls // repeats, tuple(found))

    def _node(
        self,
        segment: _TimedSegment,
        ops: Iterable[Op],
        seconds: float,
        costs: dict[tuple[str, str], Cost],
    ) -> _Node:
        name = segment.segment.name
        moved = flops = outside = 0
        computing = 0.0
        for op in ops:
            cost = costs[name, op.output]
            moved += cost.bytes
            flops += cost.flops
            outside += cost.weight_bytes + cost.kv_bytes
            multiplied = "f32"
            if op.kind == "matmul":
                multiplied = segment.nodes.multiplies(op.inputs[1])
            computing += cost.flops / self._roofline.multiply_ops_s(multiplied)
        return _Node(seconds, moved, flops, max(outside / self._roofline.read_bytes_s, computing))


@dataclass(frozen=True)
class _Node:
    seconds: float
    bytes: int
    flops: int
    limit_s: float


def _label(kind: str, ops: Iterable[Op]) -> str:
    """The kind, with the weights of products by the last word of their names."""
    weights = [
        op.inputs[1].removesuffix(".weight").rpartition(".")[2] for op in ops if op.kind == "matmul"
    ]
    return " ".join([kind, "+".join(weights)]) if weights else kind


def _step(past: int, rows: int, reaches: bool) -> Step:
    """The step of one sequence, for counting: it has no blocks."""
    positions = np.arange(past, past + rows, dtype=np.int32)
    logits_indices = np.array([rows - 1] if reaches else [], np.int32)
    return Step(np.zeros(rows, np.int32), positions, (Span(0, rows, past, ()),), logits_indices)
