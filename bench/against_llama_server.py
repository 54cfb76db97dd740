"""Strata's server beside llama.cpp's `llama-server`: the same file, threads, slots and requests.

Every pair runs both servers, one after the other, the first one first in even pairs and last in odd
ones. Clients stream `/v1/completions` at temperature 0; each sends its requests in turn, with
prompts of different lengths that share no beginning. Printed: tokens a second of all clients
together (tokens as the servers' ``usage`` counts them, over the time from the first request to the
last token), and percentiles of the time to the first token and between two pieces of an answer.

`python bench/against_llama_server.py MODEL.gguf --llama-bin DIR --clients 1,4,16 --json out.json`
Servers run on the cores of --server-cores, clients on the others of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from machine import describe

WORDS = ("river", "mill", "the", "stone", "nobody", "moved", "past", "old", "over", "year")
LENGTHS = "12,900,100,300"
"""Words of the prompts, taken in turns: from a question to a long document."""


@dataclass
class Answers:
    """What all clients saw of one server."""

    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    first_s: list[float] = field(default_factory=list)
    gap_s: list[float] = field(default_factory=list)


def prompt(client: int, number: int, lengths: Sequence[int]) -> str:
    """A text that begins like no other one."""
    words = lengths[(client + number) % len(lengths)]
    drawn = np.random.default_rng(1000 * client + number).choice(WORDS, words)
    return f"{client}.{number} " + " ".join(drawn)


async def ask(
    http: httpx.AsyncClient, url: str, model: str, text: str, gen: int, into: Answers
) -> None:
    """One streamed answer."""
    body = {
        "model": model,
        "prompt": text,
        "max_tokens": gen,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    sent = last = time.perf_counter()
    first = True
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if usage := event.get("usage"):
                into.tokens += usage["completion_tokens"]
                into.prompt_tokens += usage["prompt_tokens"]
            if not any(choice.get("text") for choice in event["choices"]):
                continue
            now = time.perf_counter()
            (into.first_s if first else into.gap_s).append(now - (sent if first else last))
            first, last = False, now


async def load(url: str, clients: int, args: argparse.Namespace) -> Answers:
    """All clients at once, each with so many requests in turn."""
    lengths = [int(n) for n in args.words.split(",")]
    found = Answers()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits) as http:
        model = (await http.get(f"{url}/v1/models")).json()["data"][0]["id"]

        async def client(number: int) -> None:
            for i in range(args.requests):
                await ask(http, url, model, prompt(number, i, lengths), args.gen, found)

        await ask(http, url, model, "Hello", 2, Answers())
        began = time.perf_counter()
        await asyncio.gather(*(client(i) for i in range(clients)))
        found.seconds = time.perf_counter() - began
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def serving(command: Sequence[object], port: int, cores: set[int]) -> Any:
    """A server that answers, until the block is left."""
    child = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if child.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {child.returncode}")
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        child.terminate()
        child.wait(60)


def ours(
    model: str, clients: int, args: argparse.Namespace, port: int, python: str = sys.executable
) -> list[object]:
    """Strata's command line, in the environment of this process or of ``python``."""
    command: list[object] = [python, "-m", "strata", "serve", model, "--port", port]
    command += ["--threads", args.threads, "--parallel", clients, "--context", args.context]
    return command + args.strata_options.split()


def theirs(model: str, clients: int, args: argparse.Namespace, port: int) -> list[object]:
    """llama-server's command line: its context is shared by all slots."""
    tool = args.llama_bin / "llama-server"
    command: list[object] = [tool, "-m", model, "--port", port, "-t", args.threads, "-np", clients]
    return [*command, "-c", args.context * clients, "-tb", args.threads, "--no-webui"]


def figures(answers: Answers) -> dict[str, Any]:
    """Tokens a second and percentiles in milliseconds."""
    found: dict[str, Any] = {
        "tok_s": answers.tokens / answers.seconds,
        "tokens": answers.tokens,
        "prompt_tokens": answers.prompt_tokens,
        "seconds": answers.seconds,
    }
    for name, times in (("ttft", answers.first_s), ("gap", answers.gap_s)):
        p50, p95 = np.percentile(times, (50, 95))
        found |= {f"{name}_p50_ms": 1e3 * float(p50), f"{name}_p95_ms": 1e3 * float(p95)}
    return found


def common_options(parser: argparse.ArgumentParser) -> None:
    """What benches of servers have in common."""
    parser.add_argument("model")
    parser.add_argument("--llama-bin", type=Path, help="without it Strata is measured alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--server-cores", default="0,1")
    parser.add_argument("--strata-options", default="", help="more for `strata serve`")
    parser.add_argument("--json", type=Path)


def leave_cores(args: argparse.Namespace) -> set[int]:
    """The servers' cores; this process is on the others from now on."""
    cores = {int(core) for core in args.server_cores.split(",")}
    os.sched_setaffinity(0, (os.sched_getaffinity(0) - cores) or cores)
    return cores


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_options(parser)
    parser.add_argument("--clients", default="1,4,16", help="%(default)s")
    parser.add_argument("--requests", type=int, default=4, help="of each client, in turn")
    parser.add_argument("--gen", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--words", default=LENGTHS, help="of the prompts, in turn (%(default)s)")
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()
    cores = leave_cores(args)
    sides = {"strata": ours} | ({"llama_server": theirs} if args.llama_bin else {})
    report: dict[str, Any] = {"machine": describe(), "model": Path(args.model).name, "runs": []}
    for clients in (int(n) for n in args.clients.split(",")):
        pairs: list[dict[str, Any]] = []
        for i in range(args.pairs):
            pair = {}
            for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
                port = free_port()
                with serving(sides[name](args.model, clients, args, port), port, cores) as url:
                    answers = asyncio.run(load(url, clients, args))
                    pair[name] = figures(answers)
            pairs.append(pair)
        report["runs"].append({"clients": clients, "pairs": pairs})
        for name in sides:
            middle = {k: statistics.median(p[name][k] for p in pairs) for k in pairs[0][name]}
            text = "  ".join(f"{k} {v:.1f}" for k, v in middle.items() if k.endswith(("s",)))
            print(f"{clients:3d} clients  {name:13s} {text}", flush=True)
        if args.llama_bin:
            ratios = [p["strata"]["tok_s"] / p["llama_server"]["tok_s"] for p in pairs]
            print(
                f"{clients:3d} clients  ratio of tok/s {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}-{max(ratios):.2f})",
                flush=True,
            )
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
