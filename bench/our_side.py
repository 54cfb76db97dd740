"""One measurement of Strata in a process of its own, as JSON on standard output.

`python bench/our_side.py MODEL WORK --threads N` with WORK as in bench/against_llamacpp.py:
``prefill:N``, ``decode:N`` (tokens after nothing), ``depth:D:N`` (N tokens after D others),
``batch:S:N`` (N tokens of each of S sequences together), or ``read`` for plain reads of memory.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from machine import Bandwidth
from strata import LLM, SamplingParams
from strata.backends.cpu.host import choose_isa
from strata.program import StepSize

BATCH_PROMPT = 16
# Several KV blocks a sequence: with one each, the last sequence waits for the room to grow.
LEAST_CONTEXT = 256


def run(
    model: str, work: str, threads: int, repeat: int, kv_type: str | None = None
) -> dict[str, Any]:
    """Tokens a second of each repetition; bytes of weights and KV that a decoded token reads."""
    kind, *numbers = work.split(":")
    if kind == "read":
        return {"bytes_s": Bandwidth(choose_isa(), threads).measure()}
    sizes = [int(n) for n in numbers]
    if kind == "batch":
        return batch(model, *sizes, threads=threads, repeat=repeat)
    prompt = sizes[0] if kind == "prefill" else 0
    depth = sizes[0] if kind == "depth" else 0
    gen = 0 if kind == "prefill" else sizes[-1]
    context = prompt + depth + gen + 4
    with LLM(model, threads=threads, context=context, kv_type=kv_type) as llm:
        samples = []
        for _ in range(repeat):
            found = llm.measure(prompt=prompt, gen=gen, depth=depth, repeat=1)
            spread = found.prefill_tok_s if prompt else found.decode_tok_s
            assert spread is not None
            samples.append(spread.median)
        cost = llm.engine.runner.cost(StepSize(1, 1, depth + gen // 2 + 1))
        return {
            "samples": samples,
            "bytes": cost.weight_bytes + cost.kv_bytes,
            "kv_bytes": llm.engine.kv_bytes,
            "load_s": llm.load_s,
            "isa": llm.isa,
        }


def batch(model: str, sequences: int, gen: int, *, threads: int, repeat: int) -> dict[str, Any]:
    """Sequences with different prompts, all of them in every step that is timed."""
    params = SamplingParams(max_tokens=gen + 1, ignore_eos=True)
    context = max(BATCH_PROMPT + gen + 2, LEAST_CONTEXT)
    with LLM(model, threads=threads, context=context, parallel=sequences) as llm:
        vocabulary = llm.engine.runner.model.vocab_size
        ids = np.random.default_rng(0).integers(0, vocabulary, (sequences, BATCH_PROMPT))
        samples = []
        for _ in range(repeat):
            requests = [llm.engine.submit(row.tolist(), params) for row in ids]
            while not all(r.output for r in requests):
                llm.engine.step()
            there = sum(len(r.output) for r in requests)
            start = time.perf_counter()
            while llm.engine.busy:
                llm.engine.step()
            seconds = time.perf_counter() - start
            made = sum(len(r.output) for r in requests) - there
            if made != sequences * gen:
                raise SystemExit(f"not all of {sequences} sequences went on together")
            samples.append(made / seconds)
        cost = llm.engine.runner.cost(StepSize(1, 1, BATCH_PROMPT + gen // 2))
        return {
            "samples": samples,
            "bytes": cost.weight_bytes / sequences + cost.kv_bytes,
            "kv_bytes": llm.engine.kv_bytes,
            "load_s": llm.load_s,
            "isa": llm.isa,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("work")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kv-type")
    args = parser.parse_args()
    print(json.dumps(run(args.model, args.work, args.threads, args.repeat, args.kv_type)))


if __name__ == "__main__":
    main()
