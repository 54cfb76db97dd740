"""Decoding behind a long context whose KV is on disk, and the first token of a text known before.

    strata synth llama-3.1-8b:Q4_K_M long.gguf --layers 8
    python bench/kv_long_context.py long.gguf --depth 131072 --memory 1GB --store DIR [--out R.json]

Computing a prompt of 131,072 tokens takes hours on a small machine, so its KV is made: the blocks
of a short real prompt, repeated, are put into the store under the keys of a drawn text. From there
everything is the usual way: the text is found in the store, brought into the pool (most of it to
KV on disk), and answered. What is told beside times: bytes read from KV on disk a token, how fast
that was beside the disk as the probe measured it, and what the Plan had said. The store takes
``depth`` positions of KV on the disk, the pool as much again; fewer ``--layers`` take less.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK
from strata.machine.probe_disk import _Reader
from strata.plan import Workload
from strata.sizes import parse_size

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from cgroups import group

SHORT = 256


def fill(llm: LLM, tokens: list[int]) -> int:
    """Have the store keep ``tokens``, with the KV of a short prompt again and again; its bytes."""
    llm.generate(tokens[:SHORT], SamplingParams(max_tokens=2, ignore_eos=True))
    memory = llm.engine._memory
    (store,) = memory.offload.stores
    state, real = memory.state, []
    for block in range(SHORT // KV_BLOCK - 1):
        real.append(np.empty(state.block_nbytes(0), np.uint8))
        state.read(0, block, real[-1])

    def get(number: int, out: Any) -> None:
        out[:] = real[number % len(real)]

    blocks = len(tokens) // KV_BLOCK
    llm.engine.forget_prefixes()
    # Files of 1,024 positions, as answers that grow would leave them.
    for first in range(0, blocks, 16):
        count = min(16, blocks - first)
        store.save(tokens[: (first + count) * KV_BLOCK], first, count, get)
    return blocks * state.block_nbytes(0)


def plain_reads(file: Path) -> float:
    """Bytes a second of direct reads of 1 MiB by 16 threads."""
    return _Reader(file, "direct", 1 << 20, 16, 0).bandwidth(0.7)


def in_a_group(args: argparse.Namespace) -> None:
    """The same command without --group, in a group that holds --memory at most; before and after
    it plain reads of the model's file, as the probe makes them."""
    words = [sys.executable, *(word for word in sys.argv if word != "--group")]
    disk = [plain_reads(args.model)]
    with group(parse_size(args.memory)) as made:
        done = made.run(words, 3600)
        sys.stderr.write(done.stderr)
        found = json.loads(done.stdout)
        found |= {"group_peak_bytes": made.peak, "group_kills": made.kills}
    disk.append(plain_reads(args.model))
    found |= {"disk_bytes_s": disk, "share_of_disk": found["read_bytes_s"] / np.mean(disk)}
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--depth", type=int, default=131072)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--store", type=Path, required=True, help="a folder for KV, on the disk")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--kv-read", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--group", action="store_true", help="in a control group of --memory")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.group:
        in_a_group(args)
        return
    depth = args.depth // KV_BLOCK * KV_BLOCK
    context = depth + args.tokens + 2
    tokens = np.random.default_rng(0).integers(100, 30000, depth + 1).tolist()
    work = Workload(prompt_tokens=depth, answer_tokens=args.tokens)
    asked: dict[str, Any] = {
        "memory": args.memory,
        "context": context,
        "threads": args.threads,
        "kv_type": args.kv_type,
        "kv_read": args.kv_read,
        "workload": work,
        "kv_store": args.store / "kv",
        "kv_store_bytes": 1 << 40,
        "kv_disk": args.store,
        "draft": "off",
    }
    args.store.mkdir(parents=True, exist_ok=True)
    with LLM(args.model, **asked) as llm:
        if llm.generate(tokens[: KV_BLOCK + 1], SamplingParams(max_tokens=1)).cached_tokens == 0:
            stored = fill(llm, tokens)
        else:
            stored = depth // KV_BLOCK * llm.engine._memory.state.block_nbytes(0)
    # As after a restart.
    with LLM(args.model, **asked) as llm:
        plan = llm.plan
        assert plan is not None
        state = llm.engine._memory.state.native  # type: ignore[attr-defined]
        one = llm.generate(tokens, SamplingParams(max_tokens=1, ignore_eos=True))
        read = state.read_bytes
        llm.engine.forget_prefixes()
        output = llm.generate(tokens, SamplingParams(max_tokens=args.tokens, ignore_eos=True))
        # The second answer loads the text again, reads nothing of the tier for that.
        steps = args.tokens
        each = (state.read_bytes - read) / steps
        timings = output.timings
        result = {
            **describe(),
            "model": args.model.name,
            "memory": parse_size(args.memory),
            "depth": depth,
            "kv_type": args.kv_type,
            "kv_read": args.kv_read,
            "kv_bytes": stored,
            "kv_slots": plan.kv_slots,
            "known_tokens": one.cached_tokens,
            "ttft_s": one.timings.ttft_s,
            "store_bytes_s": stored / one.timings.ttft_s if one.timings.ttft_s else None,
            "decode_tok_s": timings.decode_tok_s,
            "predicted_tok_s": plan.predicted.decode_tok_s,
            "kv_read_bytes_a_token": each,
            "predicted_kv_read_bytes": plan.predicted.kv_read_bytes,
            "weights_read_bytes": plan.predicted.sweep_bytes,
            "read_bytes_s": (plan.predicted.sweep_bytes + each) * (timings.decode_tok_s or 0),
            # The disk as the probe measured it, for reads of these sizes.
            "probed_bytes_s": (plan.predicted.sweep_bytes + plan.predicted.kv_read_bytes)
            / (plan.predicted.sweep_read_s or 1),
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "predicted_peak_bytes": plan.predicted.peak_bytes,
        }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
