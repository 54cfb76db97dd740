"""What choosing a token costs, by vocabulary and by what is asked: median seconds, as JSON.

The logits are those of a peaked distribution (a few tokens hold most of the mass) but for ``flat``.
`python bench/sampling.py --vocabulary 50000 150000`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from machine import describe
from strata.decode import Sampler, SamplingParams

CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "top_p flat": {"temperature": 1.5, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
    "top_k, top_p, min_p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "repetition penalty": {"repetition_penalty": 1.1},
    "frequency and presence": {"frequency_penalty": 0.5, "presence_penalty": 0.5},
    "logit bias": {"logit_bias": {5: 1.0}},
    "logprobs": {"logprobs": 5},
    "top_p, logprobs": {"temperature": 0.8, "top_p": 0.95, "logprobs": 20},
}
ROWS = 8


def logits(vocabulary: int, flat: bool) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(ROWS):
        row = (generator.standard_normal(vocabulary) * 3).astype(np.float32)
        if not flat:
            row[generator.integers(0, vocabulary, 50)] += 12
        rows.append(row)
    return rows


def seconds(vocabulary: int, name: str, repeat: int) -> float:
    """Median of choosing for a request with a prompt and 300 tokens answered."""
    generator = np.random.default_rng(1)
    rows = logits(vocabulary, "flat" in name)
    sampler = Sampler(SamplingParams(seed=1, **CASES[name]), range(0, 2000, 3), vocabulary)
    for token in generator.integers(0, vocabulary, 300):
        sampler.accept(int(token))
    times = []
    for i in range(repeat):
        start = time.perf_counter()
        sampler.choose(rows[i % ROWS])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[50_000, 150_000])
    parser.add_argument("--repeat", type=int, default=40)
    args = parser.parse_args()
    results = [
        {"vocabulary": v, "case": name, "seconds": seconds(v, name, args.repeat)}
        for v in args.vocabulary
        for name in CASES
    ]
    print(json.dumps({"machine": describe(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
