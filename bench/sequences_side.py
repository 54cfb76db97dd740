"""Tokens a second of several sequences decoded together, as JSON on standard output.

`PYTHON bench/sequences_side.py MODEL --sequences 16 --gen 32`. Only the public API is used, so that
the package of any commit can be measured; timed is from when each sequence has its first token.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from strata import LLM, SamplingParams

PROMPT = 16
# Below the least vocabulary of any model here.
TOKENS = 256
# Several KV blocks a sequence: with one each, the last sequence waits for the room to grow.
LEAST_CONTEXT = 256


def tokens_a_second(llm: LLM, prompts: list[list[int]], gen: int) -> float:
    """Of all sequences, over the steps that have all of them."""
    begun: set[int] = set()
    made = 0
    start = end = 0.0
    params = SamplingParams(max_tokens=gen + 1, ignore_eos=True)
    for chunk in llm.generate(prompts, params, stream=True):
        end = time.perf_counter()
        if len(begun) == len(prompts):
            made += 1
            continue
        begun.add(chunk.index)
        start = end
    if made != len(prompts) * gen:
        raise SystemExit(f"not all of {len(prompts)} sequences went on together")
    return made / (end - start)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--gen", type=int, default=32, help="tokens of each, after its first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    context = max(PROMPT + args.gen + 2, LEAST_CONTEXT)
    drawn = np.random.default_rng(0).integers(0, TOKENS, (args.repeat, args.sequences, PROMPT))
    with LLM(args.model, threads=args.threads, context=context, parallel=args.sequences) as llm:
        samples = [tokens_a_second(llm, prompts, args.gen) for prompts in drawn.tolist()]
    print(json.dumps({"samples": samples}))


if __name__ == "__main__":
    main()
