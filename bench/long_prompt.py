"""What others notice while a long prompt arrives: their time per token without it and beside it.

    python bench/long_prompt.py smollm2 --others 4 --prompt 4000

Prints one JSON object. ``slowdown`` is the 95th percentile of the others' time per token while the
prompt is computed over that of the quiet time before; the promise is 1.5.
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

import numpy as np

from strata import LLM, SamplingParams
from strata.engine import Engine
from strata.engine.engine import SLOWDOWN


def tokens(count: int, seed: int, vocabulary: int) -> list[int]:
    """Random tokens."""
    found: list[int] = np.random.default_rng(seed).integers(0, vocabulary, count).tolist()
    return found


def step_times(engine: Engine, until: int) -> list[float]:
    """Seconds of ``until`` steps."""
    out = []
    for _ in range(until):
        started = perf_counter()
        engine.step()
        out.append(perf_counter() - started)
    return out


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--others", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--quiet-steps", type=int, default=100)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    context = 2 * arguments.prompt + 64
    with LLM(
        arguments.model,
        threads=arguments.threads,
        context=context,
        parallel=arguments.others + 1,
        slowdown=SLOWDOWN,
    ) as llm:
        engine, vocabulary = llm.engine, llm.model.vocab_size
        answer = SamplingParams(ignore_eos=True)
        for seed in range(arguments.others):
            engine.submit(tokens(64, seed, vocabulary), answer)
        step_times(engine, 10)
        quiet = step_times(engine, arguments.quiet_steps)
        long = engine.submit(tokens(arguments.prompt, 99, vocabulary), SamplingParams(max_tokens=1))
        started = perf_counter()
        during: list[float] = []
        while not long.done:
            during += step_times(engine, 1)
        seconds = perf_counter() - started
        # The others have longer answers by now, which are slower by themselves.
        quiet += step_times(engine, arguments.quiet_steps)
    before, beside = np.percentile(quiet, 95), np.percentile(during, 95)
    result = {
        "others": arguments.others,
        "prompt": arguments.prompt,
        "quiet_ms": {"p50": 1e3 * float(np.median(quiet)), "p95": 1e3 * float(before)},
        "during_ms": {"p50": 1e3 * float(np.median(during)), "p95": 1e3 * float(beside)},
        "slowdown": float(beside / before),
        "prompt_s": seconds,
        "steps": len(during),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
