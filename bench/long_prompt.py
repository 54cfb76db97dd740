"""What others notice while a long prompt arrives: their time per token without it and beside it.

Clients stream long answers from a server, as people do, until another one sends a prompt of
thousands of tokens. ``slowdown`` is the 95th percentile of the time between two pieces of the
others' answers while the prompt is computed, over that of the same pieces when they are asked for
again and nobody else comes; the promise is 1.5. With --llama-bin, llama.cpp's `llama-server` does
the same in turns.

`python bench/long_prompt.py MODEL.gguf --llama-bin DIR --json out.json`
The server runs on the cores of --server-cores, clients on the others of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from against_llama_server import (
    common_options,
    free_port,
    leave_cores,
    ours,
    prompt,
    serving,
    theirs,
)
from machine import describe


async def stream(
    http: httpx.AsyncClient, url: str, body: dict[str, Any], arrived: Callable[[float], None]
) -> int:
    """Tell ``arrived`` when each piece of an answer came; the tokens of its prompt at last."""
    body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    tokens = 0
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("prompt_tokens", tokens)
            if any(choice.get("text") for choice in event["choices"]):
                arrived(time.perf_counter())
    return tokens


async def load(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one server."""
    async with httpx.AsyncClient(timeout=600) as http:
        model = (await http.get(f"{url}/v1/models")).json()["data"][0]["id"]

        def asked(number: int, words: int, tokens: int) -> dict[str, Any]:
            text = prompt(number, 0, [words])
            return {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0}

        @asynccontextmanager
        async def others() -> AsyncIterator[list[list[float]]]:
            times: list[list[float]] = [[] for _ in range(args.others)]
            tasks = [
                asyncio.create_task(stream(http, url, asked(i, 40, args.context - 100), t.append))
                for i, t in enumerate(times)
            ]
            await until(lambda: all(times))
            yield times
            if any(task.done() for task in tasks):
                raise SystemExit("an answer ended before its time: raise --context")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        async with others() as beside:
            await asyncio.sleep(args.before)
            began = time.perf_counter()
            # Most words are a token; the server says how many there were.
            tokens = await stream(http, url, asked(args.others, args.prompt, 1), lambda _: None)
            seconds = time.perf_counter() - began
            # The next piece of each was waited for as well.
            ends = [len(each) + 1 for each in beside]
            await until(lambda: all(len(e) >= end for e, end in zip(beside, ends, strict=True)))
        # The same pieces again with nobody beside them.
        async with others() as alone:
            await until(lambda: all(len(e) >= end for e, end in zip(alone, ends, strict=True)))
    found: dict[str, Any] = {"prompt_tokens": tokens, "prompt_s": seconds}
    begins = [sum(t < began for t in each) for each in beside]
    for name, times in (("alone", alone), ("beside", beside)):
        gaps = [
            now - then
            for each, begin, end in zip(times, begins, ends, strict=True)
            for then, now in pairwise(each[begin - 1 : end])
        ]
        p50, p95 = np.percentile(gaps, (50, 95))
        found |= {f"{name}_p50_ms": 1e3 * float(p50), f"{name}_p95_ms": 1e3 * float(p95)}
    return {**found, "slowdown": found["beside_p95_ms"] / found["alone_p95_ms"]}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    while not condition():
        await asyncio.sleep(0.01)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_options(parser)
    parser.add_argument("--others", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=4000, help="words of the prompt")
    parser.add_argument("--before", type=float, default=2.0, help="seconds until the prompt")
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    cores = leave_cores(args)
    sides = {"strata": ours} | ({"llama_server": theirs} if args.llama_bin else {})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for i in range(args.pairs):
        for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
            port = free_port()
            with serving(sides[name](args.model, args.others + 1, args, port), port, cores) as url:
                runs[name].append(asyncio.run(load(url, args)))
    for name, some in runs.items():
        middle = {key: statistics.median(run[key] for run in some) for key in some[0]}
        slowdowns = [run["slowdown"] for run in some]
        text = "  ".join(f"{key} {value:.1f}" for key, value in middle.items() if key != "slowdown")
        spread = f"{middle['slowdown']:.2f} ({min(slowdowns):.2f}-{max(slowdowns):.2f})"
        print(f"{name:13s} slowdown {spread}  {text}", flush=True)
    if args.json:
        report = {"machine": describe(), "model": Path(args.model).name, "runs": runs}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
