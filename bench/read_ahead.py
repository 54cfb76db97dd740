"""Experts read before they are chosen against experts read when they are: the same file, the same
memory, in turns.

    python bench/read_ahead.py MODEL --memory 1500MB [--ahead 8] [--pairs 8] [--tokens 24]
        [--parallel 1] [--out FILE]

Slots for what is foreseen are taken from those that hold experts. Told are, as means of the runs,
seconds of a sweep that decodes, and of those how many the kernels waited for bytes and how many no
thread read; hits and misses; bytes read, of those how many were begun ahead, and bytes read in
vain; experts that were foreseen and not there, and of those how many were needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from strata import LLM, SamplingParams


def once(llm: LLM, ahead: int, parallel: int, tokens: int, seed: int) -> dict[str, float]:
    """Decode some tokens with so many slots for what is foreseen."""
    runtime = llm.runtime
    with llm.driver.alone() as engine:
        how = replace(runtime.settings, expert_ahead=ahead)
        engine.rearrange(how, runtime.settings)
        runtime.settings = how
    random = np.random.default_rng(seed)
    warm, prompts = random.integers(100, 5000, (2, parallel, 2)).tolist()
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1, seed=seed)
    # What another text leaves in the slots, whatever ran before that.
    llm.generate(warm, params)
    before, start = runtime.backend.stats(), time.perf_counter()
    llm.generate(prompts, params)
    seconds, s = time.perf_counter() - start, runtime.backend.stats().since(before)
    return {
        "s": seconds / tokens,
        "hits": s.expert_hits,
        "misses": s.expert_misses,
        "read": s.expert_read,
        "begun_ahead": s.ahead,
        "begun_ahead_bytes": s.ahead_bytes,
        "wasted_bytes": s.wasted_bytes,
        "waited_s": s.waited_s / tokens,
        "disk_idle_s": s.full_s / tokens,
        "foreseen": s.foreseen,
        "right": s.foreseen_right,
    }


def main() -> None:
    """Both ways, changing places, and the ratios of their times pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--ahead", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": describe()}
    with LLM(
        given.model, memory=given.memory, parallel=given.parallel, context=256, draft="off"
    ) as llm:
        slots = llm.runtime.settings.expert_slots
        if not slots:
            raise SystemExit("all experts stay in so much memory; give less")
        ahead = min(given.ahead, slots - 1)
        runs: dict[int, list[dict[str, float]]] = {0: [], ahead: []}
        once(llm, 0, given.parallel, given.tokens, 0)
        for pair in range(given.pairs):
            for n in (0, ahead) if pair % 2 else (ahead, 0):
                runs[n].append(once(llm, n, given.parallel, given.tokens, pair + 1))
    ratios = sorted(a["s"] / b["s"] for a, b in zip(runs[0], runs[ahead], strict=True))
    found |= {
        "model": given.model.name,
        "memory": given.memory,
        "parallel": given.parallel,
        "slots": slots,
        "ahead": ahead,
        "times_as_fast": statistics.median(ratios),
        "least_and_most": [ratios[0], ratios[-1]],
    }
    for name, n in (("without", 0), ("with", ahead)):
        keys = runs[n][0].keys()
        found[name] = {k: statistics.mean(r[k] for r in runs[n]) for k in keys}
        found[name]["least_s"] = min(r["s"] for r in runs[n])
        found[name]["least_waited_s"] = min(r["waited_s"] for r in runs[n])
    written = json.dumps(found, indent=1)
    if given.out is not None:
        given.out.write_text(written + "\n")
    print(written)


if __name__ == "__main__":
    main()
