"""What loading a known text layer by layer, while layers compute, could gain at most.

    python bench/kv_loading.py MODEL --depth 8000 --store DIR --out RESULT.json

A text of --depth tokens is in the store, and a question behind it is not. Loading ends before the
question is computed; if layers were computed as soon as their KV is there, the first token could
come no sooner than the longer of the two takes, nor than all processors need for the work of both
(what comes from the store is compared with its digests and copied). ``at_best_s`` is that, for each
length of a question; as for ``kv_long_context.py`` the text's KV is a short prompt's, repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

from kv_long_context import fill
from machine import describe
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK


class Watched:
    """Seconds, and processors' seconds, that loading from a store takes."""

    def __init__(self, offload: Any) -> None:
        self.wall = self.cpu = 0.0
        self._load = offload.load
        offload.load = self

    def __call__(self, tokens: Any, run: Any) -> int:
        wall, cpu = perf_counter(), process_time()
        try:
            return int(self._load(tokens, run))
        finally:
            self.wall += perf_counter() - wall
            self.cpu += process_time() - cpu


def first_token(llm: LLM, watched: Watched, prompt: list[int]) -> dict[str, float]:
    """Loading and computing until the first token of an answer."""
    llm.engine.forget_prefixes()
    while llm.engine.known(prompt)[0]:
        # The last answer's blocks are being written.
        sleep(0.1)
        llm.engine.forget_prefixes()
    watched.wall = watched.cpu = 0.0
    wall, cpu = perf_counter(), process_time()
    output = llm.generate(prompt, SamplingParams(max_tokens=1, ignore_eos=True, temperature=0))
    wall, cpu = perf_counter() - wall, process_time() - cpu
    return {
        "known_tokens": output.cached_tokens,
        "first_token_s": wall,
        "load_s": watched.wall,
        "load_processor_s": watched.cpu,
        "compute_s": wall - watched.wall,
        "compute_processor_s": cpu - watched.cpu,
    }


def summary(found: list[dict[str, float]], cores: int) -> dict[str, float]:
    """Medians, and what the first token could take at best."""
    out = {key: statistics.median(row[key] for row in found) for key in found[0]}
    work = (out["load_processor_s"] + out["compute_processor_s"]) / cores
    out["at_best_s"] = max(out["load_s"], out["compute_s"], work)
    out["gain_at_most"] = out["first_token_s"] / out["at_best_s"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, default=8000)
    parser.add_argument("--questions", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", type=Path, required=True, help="a folder for KV, on the disk")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    depth, cores = args.depth // KV_BLOCK * KV_BLOCK, len(os.sched_getaffinity(0))
    random = np.random.default_rng(0)
    tokens = random.integers(100, 30000, depth).tolist()
    asked: dict[str, Any] = {
        "context": depth + max(args.questions) + 2,
        "threads": cores,
        "kv_store": args.store / "kv",
        "draft": "off",
    }
    args.store.mkdir(parents=True, exist_ok=True)
    with LLM(args.model, **asked) as llm:
        stored = fill(llm, tokens)
    result: dict[str, Any] = {"machine": describe(), "model": args.model.name, "depth": depth}
    result |= {"kv_bytes": stored, "questions": {}}
    # As after a restart.
    with LLM(args.model, **asked) as llm:
        watched = Watched(llm.engine._memory.offload)
        for count in args.questions:
            # Each with another question, of which nothing is known.
            prompts = [
                [*tokens, *random.integers(100, 30000, count).tolist()]
                for _ in range(args.rounds + 1)
            ]
            found = [first_token(llm, watched, prompt) for prompt in prompts][1:]
            assert all(row["known_tokens"] == depth for row in found)
            result["questions"][str(count)] = {**summary(found, cores), "rounds": found}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for number, row in result["questions"].items():
        print(number, json.dumps({k: v for k, v in row.items() if k != "rounds"}))


if __name__ == "__main__":
    main()
