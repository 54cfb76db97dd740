"""Speed of an engine on synthetic tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from statistics import median
from time import perf_counter

from strata.decode import SamplingParams
from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.records import dataclass

_WARM_UP_TOKENS = 32


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the repetitions."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Measurement:
    """Tokens a second of prefill and decode; ``ttft_s`` is the time of the prefill step or steps
    and of choosing the first token. None for what was not asked for."""

    prefill_tok_s: Spread | None
    decode_tok_s: Spread | None
    ttft_s: Spread | None


def context_for_measurement(*, prompt: int, gen: int, depth: int) -> int:
    """Positions that ``measure`` needs."""
    warm_up = 3
    return max(prompt + 1, max(depth, 1) + gen + 1, warm_up)


def measure(
    engine: Engine,
    *,
    prompt: int,
    gen: int,
    depth: int = 0,
    repeat: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Prefill of ``prompt`` tokens, and decode of ``gen`` tokens after ``depth`` others.

    Every repetition starts with nothing computed; a short run before warms up. The tokens are
    random with a fixed seed. ``progress`` gets the repetitions done and their number.
    """
    needed = context_for_measurement(prompt=prompt, gen=gen, depth=depth)
    if min(prompt, gen, depth) < 0 or prompt + gen == 0 or repeat < 1:
        raise UsageError("a measurement needs prompt or generated tokens, and a repetition")
    if needed > engine.context:
        raise UsageError(
            f"this measurement needs a context of {needed} positions, but it is {engine.context}"
        )
    # Not numpy's: importing that takes megabytes, which no run but this one would need.
    ids = Random(0).choices(range(engine.runner.model.vocab_size), k=needed)
    _advance(engine, ids[: min(_WARM_UP_TOKENS, needed - 2)], 2)
    first: list[float] = []
    decode: list[float] = []
    for done in range(repeat):
        if prompt:
            first.append(_advance(engine, ids[:prompt], 1)[0])
        if gen:
            decode.append(_advance(engine, ids[: max(depth, 1)], gen + 1)[1])
        if progress:
            progress(done + 1, repeat)
    return Measurement(
        _spread([prompt / t for t in first]),
        _spread([gen / t for t in decode]),
        _spread(first),
    )


def _advance(engine: Engine, ids: Sequence[int], tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last of ``tokens``."""
    engine.forget_prefixes()
    if engine.drafting is not None:
        # What follows random tokens repeats itself, which real answers do less.
        engine.drafting.enabled = False
    start = perf_counter()
    request = engine.submit(ids, SamplingParams(max_tokens=tokens, ignore_eos=True))
    try:
        while not request.output:
            engine.step()
        first = perf_counter()
        while not request.done:
            engine.step()
        return first - start, perf_counter() - first
    finally:
        engine.cancel(request)
        if engine.drafting is not None:
            engine.drafting.enabled = True


def _spread(values: list[float]) -> Spread | None:
    return Spread(median(values), min(values), max(values)) if values else None
