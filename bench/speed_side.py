"""A process that holds a model and measures it when it is told to: one side of two commits.

`PYTHON bench/speed_side.py MODEL --work decode` answers each line of standard input with tokens a
second as JSON, and the end of the input with the most memory it held. Only the public API is used,
so that the package of any commit can be measured.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strata import LLM, SamplingParams

# Below the least vocabulary of any model here.
TOKENS = 256


@dataclass(frozen=True)
class Work:
    """``sequences`` prompts of ``prompt`` tokens, each answered by ``gen`` after its first; their
    prefill is timed where there are none. ``fresh``: other prompts each time."""

    prompt: int
    gen: int
    sequences: int = 1
    fresh: bool = True

    @property
    def context(self) -> int:
        """Several KV blocks a sequence: with one each, the last waits for the room to grow."""
        return max(self.prompt + self.gen + 2, 256)


WORKS = {
    "decode": Work(prompt=1, gen=64),
    "prefill": Work(prompt=512, gen=0),
    # The same prompt: after the first time its blocks are found again.
    "depth": Work(prompt=4096, gen=32, fresh=False),
    "sequences": Work(prompt=16, gen=32, sequences=16),
}


def prompts(work: Work) -> Iterator[list[list[int]]]:
    """Of one measurement after the other."""
    drawn = np.random.default_rng(0)
    first = drawn.integers(0, TOKENS, (work.sequences, work.prompt)).tolist()
    yield first
    while True:
        fresh = drawn.integers(0, TOKENS, (work.sequences, work.prompt)).tolist()
        yield fresh if work.fresh else first


def tokens_a_second(llm: LLM, work: Work, asked: list[list[int]]) -> float:
    """Of all sequences, over the steps that have all of them; of the prompt where that is timed."""
    begun: set[int] = set()
    made = 0
    called = start = end = time.perf_counter()
    params = SamplingParams(max_tokens=work.gen + 1, ignore_eos=True, temperature=0)
    for chunk in llm.generate(asked, params, stream=True):
        end = time.perf_counter()
        if len(begun) == work.sequences:
            made += 1
            continue
        begun.add(chunk.index)
        start = end
    if made != work.sequences * work.gen:
        raise SystemExit(f"not all of {work.sequences} sequences went on together")
    if not work.gen:
        return work.sequences * work.prompt / (end - called)
    return made / (end - start)


def most_held() -> int:
    """Bytes, of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


def main() -> None:
    """Measure, whenever a line comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    work = WORKS[args.work]
    fresh = prompts(work)
    options = {"threads": args.threads, "context": work.context, "parallel": work.sequences}
    if "draft" in inspect.signature(LLM).parameters:
        # A step's speed is compared; some packages know no guesses (bench/speculation.py).
        options["draft"] = "off"
    with LLM(args.model, **options) as llm:
        # What is done the first time only is not measured.
        for asked in itertools.islice(fresh, 2):
            tokens_a_second(llm, work, asked)
        for _ in sys.stdin:
            print(json.dumps({"tok_s": tokens_a_second(llm, work, next(fresh))}), flush=True)
        print(json.dumps({"peak_bytes": most_held()}), flush=True)


if __name__ == "__main__":
    main()
