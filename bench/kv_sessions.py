"""Conversations that come back: many more than memory holds, with a store on disk, a kill and a
restart in the middle.

    python bench/kv_sessions.py smollm2 --store DIR [--conversations 200] [--tokens 4096] [--out R]

Each conversation begins with a text of its own and goes on with short questions; who comes next is
drawn by Zipf's law. Memory has room for the KV of ``--held`` of them. The process that answers is
killed after half of the arrivals and started again over the same store. Told are times to the first
token: of conversations that come back, with the store, and of the same prompts when they are
computed again (``--again`` of them, by a process without a store); and whether the answers of these
are the same to the bit. Arrivals that are in RESULT.json already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe

QUESTION, ANSWER = 24, 8


def child(args: argparse.Namespace) -> None:
    """Answer prompts from standard input, a line of JSON each."""
    from strata import LLM, SamplingParams

    params = SamplingParams(max_tokens=ANSWER, logprobs=1, ignore_eos=True)
    context = args.tokens + args.turns * (QUESTION + ANSWER)
    with LLM(args.model, context=context, threads=args.threads, kv_type=args.kv_type) as llm:
        sizes = llm.runtime.kv_type.block_nbytes
        position = sum(sizes(llm.model.state, g) for g in llm.model.groups) // 64
    held = args.held * args.tokens * position + context * position
    with LLM(
        args.model,
        context=context,
        threads=args.threads,
        kv_type=args.kv_type,
        kv_bytes=held,
        kv_store=args.store / "kv" if args.store else None,
        kv_store_bytes=1 << 40,
        draft="off",
    ) as llm:
        print(json.dumps({"kv_bytes": held}), flush=True)
        for line in sys.stdin:
            out = llm.generate(json.loads(line), params)
            said = {
                "ttft_s": out.timings.ttft_s,
                "known": out.cached_tokens,
                "ids": list(out.token_ids),
                "logprobs": [s.logprob for s in out.logprobs or ()],
            }
            print(json.dumps(said), flush=True)


class Server:
    def __init__(self, args: argparse.Namespace, *, store: bool) -> None:
        words = [sys.executable, __file__, args.model, "--child", "--tokens", str(args.tokens)]
        words += ["--held", str(args.held), "--kv-type", args.kv_type]
        words += ["--turns", str(max(Counter(arrivals(args)).values()))]
        if args.threads:
            words += ["--threads", str(args.threads)]
        if store:
            words += ["--store", str(args.store)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.began = self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the process that answers has ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, prompt: list[int]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(prompt) + "\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def arrivals(args: argparse.Namespace) -> list[int]:
    """Which conversation comes next."""
    rank = np.arange(1, args.conversations + 1)
    share = (1 / rank) / (1 / rank).sum()
    random = np.random.default_rng(1)
    return random.choice(args.conversations, args.arrivals, p=share).tolist()


def text(number: int, part: int, count: int) -> list[int]:
    drawn: list[int] = np.random.default_rng((number, part)).integers(100, 40000, count).tolist()
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--arrivals", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--held", type=int, default=8)
    parser.add_argument("--again", type=int, default=20)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    if args.store is None or args.out is None:
        parser.error("--store and --out are needed")
    args.store.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {"rows": [], "again": []}
    if args.out.exists():
        done = json.loads(args.out.read_text())
    rows = done["rows"]
    history: dict[int, list[int]] = {}
    order = arrivals(args)
    server = Server(args, store=True) if len(rows) < len(order) else None
    for number, who in enumerate(order):
        asked = history.setdefault(who, text(who, 0, args.tokens))
        asked += text(who, 1 + len(asked), QUESTION)
        if number == len(rows):
            if number == len(order) // 2:
                assert server is not None
                server.kill()
                server = Server(args, store=True)
            assert server is not None
            said = server.ask(asked)
            rows.append({"who": who, "tokens": len(asked), **said})
            if number % 10 == 9 or number + 1 == len(order):
                args.out.write_text(json.dumps(done) + "\n")
        history[who] = asked + rows[number]["ids"]
    if server is not None:
        server.kill()
    _again(args, order, done)
    _tell(args, done)


def _again(args: argparse.Namespace, order: list[int], done: dict[str, Any]) -> None:
    """The last arrivals of conversations that had been there, computed from nothing."""
    rows, history, last = done["rows"], dict[int, list[int]](), []
    for number, who in enumerate(order):
        back = who in history
        asked = history.setdefault(who, text(who, 0, args.tokens))
        asked += text(who, 1 + len(asked), QUESTION)
        if back:
            last.append((number, list(asked)))
        history[who] = asked + rows[number]["ids"]
    wanted = last[-args.again :][len(done["again"]) :]
    if not wanted:
        return
    server = Server(args, store=False)
    for number, asked in wanted:
        said = server.ask(asked)
        same = said["ids"] == rows[number]["ids"] and said["logprobs"] == rows[number]["logprobs"]
        done["again"].append(
            {"number": number, "ttft_s": said["ttft_s"], "known": said["known"], "same": same}
        )
        args.out.write_text(json.dumps(done) + "\n")
    server.kill()


def _tell(args: argparse.Namespace, done: dict[str, Any]) -> None:
    seen: set[int] = set()
    back = []
    for row in done["rows"]:
        if row["who"] in seen:
            back.append(row["ttft_s"])
        seen.add(row["who"])
    computed = [row["ttft_s"] for row in done["again"] if row["known"] < QUESTION + 64]
    least = [row for row in done["rows"] if row["who"] in seen and row["known"] == 0]
    done["summary"] = {
        **describe(),
        "arrivals": len(done["rows"]),
        "conversations": len(seen),
        "came_back": len(back),
        "ttft_p50_s": float(np.percentile(back, 50)) if back else None,
        "ttft_p95_s": float(np.percentile(back, 95)) if back else None,
        "computed_p50_s": float(np.percentile(computed, 50)) if computed else None,
        "computed_p95_s": float(np.percentile(computed, 95)) if computed else None,
        "nothing_known": len(least) - len(seen),
        "wrong": sum(not row["same"] for row in done["again"]),
    }
    args.out.write_text(json.dumps(done) + "\n")
    print(json.dumps(done["summary"], indent=1))


if __name__ == "__main__":
    main()
