"""Time to the first token of a prompt that begins as another did: computed, from memory, from disk.

    python bench/prefix_cache.py smollm2 --prefix 2000

Prints one JSON object: medians in milliseconds, and how many times faster than computing. ``disk``
is measured by a new engine over the same directory, as after a restart; ``--drop-caches`` asks the
system to forget what it has of the files (without it they may come from the page cache, though the
store itself asks for that whenever it has written or read). All answers must have the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from strata import LLM, Output, SamplingParams


def first_token(llm: LLM, prompt: list[int]) -> tuple[float, Output]:
    """Milliseconds to the first token, and the answer."""
    output = llm.generate(prompt, SamplingParams(max_tokens=8, logprobs=1, ignore_eos=True))
    assert output.timings.ttft_s is not None
    return 1e3 * output.timings.ttft_s, output


def forget_files(directory: Path) -> None:
    """Have the page cache let go of the store's files."""
    for path in directory.glob("*.kv"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--own", type=int, default=16, help="tokens behind the prefix")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-type")
    parser.add_argument("--drop-caches", action="store_true")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {"cold": [], "memory": [], "disk": []}
    with tempfile.TemporaryDirectory() as name:
        context = arguments.prefix + arguments.own + 64

        def opened(store: str | None) -> LLM:
            return LLM(
                arguments.model,
                threads=arguments.threads,
                context=context,
                parallel=2,
                kv_type=arguments.kv_type,
                kv_store=store,
            )

        with opened(None) as llm:
            vocabulary, kv_bytes = llm.model.vocab_size, llm.engine.kv_bytes
            prefix = random.integers(0, vocabulary, arguments.prefix).tolist()
            owns = [
                random.integers(0, vocabulary, arguments.own).tolist()
                for _ in range(arguments.repeat)
            ]
            first_token(llm, owns[0])
            answers = []
            for own in owns:
                llm.engine.forget_prefixes()
                cold, answer = first_token(llm, prefix + own)
                warm, again = first_token(llm, prefix + own)
                assert again.logprobs == answer.logprobs
                times["cold"].append(cold)
                times["memory"].append(warm)
                answers.append(answer)
        with opened(name) as llm:
            first_token(llm, prefix)
        stored = sum(path.stat().st_size for path in Path(name).glob("*.kv"))
        for own, answer in zip(owns, answers, strict=True):
            if arguments.drop_caches:
                forget_files(Path(name))
            with opened(name) as llm:
                first_token(llm, owns[0])
                found, again = first_token(llm, prefix + own)
            assert again.logprobs == answer.logprobs
            assert again.cached_tokens >= arguments.prefix // 64 * 64 - 64
            times["disk"].append(found)
    medians = {name: median(values) for name, values in times.items()}
    result = {
        "prefix": arguments.prefix,
        "ttft_ms": medians,
        "memory_times_faster": medians["cold"] / medians["memory"],
        "disk_times_faster": medians["cold"] / medians["disk"],
        "stored_bytes": stored,
        "kv_bytes": kv_bytes,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
