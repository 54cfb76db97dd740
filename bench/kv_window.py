"""What a window over KV costs and saves, with and without the first positions, on a long text.

    python bench/kv_window.py MODEL --text FILE --out R.json [--tokens 20000] [--window 1024]

The text goes through as one sequence, also beyond the context that the model was trained for.
Told of each way to keep KV: the perplexity of each part of --part tokens (whether it stays in a
band or explodes), the KV blocks that it can hold at most, and tokens a second. "all" keeps all
positions and ends where the model does. What is in R.json already is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from machine import describe
from strata import LLM
from strata.formats import open_model
from strata.hub.references import resolve
from strata.models import trained_context


def measured(args: argparse.Namespace, kept: str | None) -> dict[str, Any]:
    path = resolve(args.model)
    with open_model(path) as file:
        most = trained_context(file)
    context = args.tokens if kept else min(args.tokens, most)
    how: dict[str, Any] = {"context": context, "parallel": 1, "threads": args.threads}
    with LLM(path, kv_window=kept, draft="off", **how) as llm:
        ids = llm.tokenizer.encode(args.text.read_text(), add_special=True)[:context]
        began = perf_counter()
        nll = -llm.engine.logprobs(ids, 0)
        seconds = perf_counter() - began
        manager = llm.engine._memory.manager
        parts = [nll[i : i + args.part] for i in range(0, len(nll), args.part)]
        return {
            "tokens": len(ids),
            "perplexity": float(np.exp(nll.mean())),
            "parts": [float(np.exp(part.mean())) for part in parts],
            "kv_blocks": manager.needed(context),
            "kv_bytes": llm.engine.kv_bytes,
            "tok_s": len(nll) / seconds,
            "trained_context": most,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--part", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    done: dict[str, Any] = {"ways": {}}
    if args.out.exists():
        done = json.loads(args.out.read_text())
    w = args.window
    ways = {"all": None, "window": f"{w}:0"}
    ways |= {f"{n} first ones and window": f"{w - n}:{n}" for n in (1, 4, 16, 64)}
    for name, kept in ways.items():
        if name in done["ways"]:
            continue
        done["ways"][name] = found = measured(args, kept)
        done |= {"model": args.model, "text": args.text.name, "machine": describe()}
        args.out.write_text(json.dumps(done, indent=1) + "\n")
        ends = f"{found['parts'][0]:.1f} to {found['parts'][-1]:.1f}"
        print(
            f"{name:28} perplexity {found['perplexity']:9.2f} ({ends})  {found['tok_s']:.0f} tok/s"
        )


if __name__ == "__main__":
    main()
