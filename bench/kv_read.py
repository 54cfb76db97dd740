"""What reading blocks of KV costs and saves: perplexity, planted facts, and bytes from the disk.

    python bench/kv_read.py MODEL --text FILE --out R.json [--read 256,512,1024,2048]

Perplexity is of one text of --tokens tokens as one sequence. Facts: in a text of --fact-tokens
tokens eight sentences "The secret code of ... is ...", with digits that were drawn, stand at even
distances; asked for one at the end, recalled is a fact whose digits are each the likeliest token,
in --rounds texts. Bytes are those that --decoded tokens behind the text read from KV on disk, with
room for --slots blocks in memory. Beside it the same of windows over KV, which keep no more than
they see. What is in R.json already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from strata import LLM, SamplingParams
from strata.hub.references import resolve

NAMES = ("Ada", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Hugo")


def perplexity(llm: LLM, ids: list[int]) -> float:
    nll = -llm.engine.logprobs(ids, 0)
    return float(np.exp(nll.mean()))


def recalled(llm: LLM, text: list[int], rounds: int, seed: int) -> dict[str, Any]:
    """Of the facts at each place the share whose digits are all likeliest, and of all."""
    random, encode = np.random.default_rng(seed), llm.tokenizer.encode
    hits = dict.fromkeys(range(len(NAMES)), 0)
    for _ in range(rounds):
        order, codes, ids = random.permutation(len(NAMES)), {}, []
        each = len(text) // len(NAMES)
        for place, who in enumerate(order):
            codes[place] = "".join(map(str, random.integers(0, 10, 4)))
            fact = f"\n\nThe secret code of {NAMES[who]} is {codes[place]}.\n\n"
            part = text[place * each : (place + 1) * each]
            ids += [*part[: each // 2], *encode(fact), *part[each // 2 :]]
        for place, who in enumerate(order):
            want = encode(f" {codes[place]}")
            params = SamplingParams(max_tokens=len(want), temperature=0, ignore_eos=True)
            ask = encode(f"\n\nThe secret code of {NAMES[who]} is")
            hits[place] += list(llm.generate([*ids, *ask], params).token_ids) == want
    by_place = [n / rounds for n in hits.values()]
    return {"recalled": float(np.mean(by_place)), "recalled_by_place": by_place}


def read_bytes(path: Path, ids: list[int], args: argparse.Namespace, read: int) -> dict[str, Any]:
    """Of KV on disk: bytes a token behind ``ids``, with the plan's slots replaced."""
    context = len(ids) + args.decoded + 1
    how: dict[str, Any] = {"context": context, "parallel": 1, "draft": "off", "kv_read": read}
    with LLM(path, planned=True, memory=args.memory, **how) as llm:
        plan = llm.plan
    assert plan is not None
    # No more rows a step than there are slots for what they write.
    plan = replace(plan, kv_slots=args.slots, max_tokens=128, logit_rows=1)
    with LLM(path, plan=plan, draft="off") as llm:
        native = llm.engine._memory.state.native  # type: ignore[attr-defined]
        params = SamplingParams(max_tokens=args.decoded, ignore_eos=True)
        before, seen = 0, 0
        for _ in llm.generate(ids, params, stream=True):
            seen += 1
            before = before or native.read_bytes
        return {"kv_read_bytes_a_token": (native.read_bytes - before) / (seen - 1)}


def measured(args: argparse.Namespace, way: str) -> dict[str, Any]:
    path = resolve(args.model)
    kind, _, size = way.partition(" ")
    seen: dict[str, Any] = {"read": {"kv_read": int(size or 0)}, "window": {"kv_window": size}}.get(
        kind, {}
    )
    context = args.tokens + 64
    with LLM(path, context=context, parallel=1, threads=args.threads, draft="off", **seen) as llm:
        ids = llm.tokenizer.encode(args.text.read_text(), add_special=True)[: args.tokens]
        found: dict[str, Any] = {"perplexity": perplexity(llm, ids)}
        found |= recalled(llm, ids[: args.fact_tokens], args.rounds, args.seed)
    if kind != "window":
        found |= read_bytes(path, ids, args, int(size or 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--fact-tokens", type=int, default=3600)
    parser.add_argument("--read", default="256,512,1024,2048")
    parser.add_argument("--window", default="512,1024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decoded", type=int, default=8)
    parser.add_argument("--slots", type=int, default=12)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    result: dict[str, Any] = {"ways": {}}
    if args.out.exists():
        result = json.loads(args.out.read_text())
    ways = ["all", *(f"read {n}" for n in args.read.split(","))]
    ways += [f"window {n}" for n in args.window.split(",")]
    for way in ways:
        if way in result["ways"]:
            continue
        result["ways"][way] = measured(args, way)
        result |= {**describe(), "model": resolve(args.model).name, "tokens": args.tokens}
        result |= {"fact_tokens": args.fact_tokens, "facts": len(NAMES) * args.rounds}
        print(way, json.dumps(result["ways"][way]), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
