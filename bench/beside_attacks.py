"""What a quiet client's tokens take while others attack the server.

One client reads a stream of tokens; beside it, one after the other, each attack goes on: requests
that are costly to read, to encode or to watch for stop strings, and crowds of connections. Printed
for each: the median and the 99th percentile of the time between two tokens, and the latter as a
multiple of that without an attack, measured right before it. `plain` is no attack: as many requests
for tokens at a time, which share the machine by right.

`python bench/beside_attacks.py MODEL --json out.json`
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from machine import describe

Attack = Callable[[str, threading.Event], None]
CHAT = {"model": "it", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@contextmanager
def serving(model: str, threads: int) -> Iterator[str]:
    """The address of a server in another process."""
    command = [sys.executable, "-m", "strata", "serve", model, "--alias", "it", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", str(threads), "--context", "4096"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("listening at "):
                yield line.split()[2]
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate()


def token_times(url: str, tokens: int) -> list[float]:
    """Seconds between the tokens of one answer."""
    body = {"model": "it", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True}
    connection = connect(url)
    data = json.dumps({**body, "ignore_eos": True, "temperature": 0})
    connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
    answer = connection.getresponse()
    came = []
    while line := answer.readline():
        if line.startswith(b"data: {"):
            came.append(time.perf_counter())
    connection.close()
    return [after - before for before, after in pairwise(came)]


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)


def posting(path: str, body: dict[str, Any]) -> Attack:
    """The same request again and again."""
    data = json.dumps(body).encode()

    def attack(url: str, over: threading.Event) -> None:
        while not over.is_set():
            with suppress(OSError, http.client.HTTPException):
                connection = connect(url)
                connection.request("POST", path, data, {"content-type": "application/json"})
                connection.getresponse().read()
                connection.close()

    return attack


def silent_crowd(url: str, over: threading.Event) -> None:
    """As many connections as there may be, which say nothing, and come again when they are gone."""
    parts = urlsplit(url)
    socks: list[socket.socket] = []
    while not over.is_set():
        with suppress(OSError):
            socks.append(socket.create_connection((parts.hostname, parts.port), timeout=1))
        if len(socks) > 800:
            socks.pop(0).close()
    for sock in socks:
        sock.close()


CHAT_PATH, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = {"model": "it", "prompt": "a a a a", "max_tokens": 64, "temperature": 0}
ATTACKS: dict[str, Attack] = {
    "plain": posting(COMPLETIONS, LONG),
    "stop strings of 100 kB": posting(COMPLETIONS, {**LONG, "stop": [" a" * 50_000] * 40}),
    "64 stop strings at the bound": posting(
        COMPLETIONS, {**LONG, "stop": [" a" * 500 + chr(65 + n % 26) for n in range(64)]}
    ),
    "special tokens": posting("/tokenize", {"content": "<|im_end|>" * 15_000}),
    "200,000 messages": posting(CHAT_PATH, {**CHAT, "messages": CHAT["messages"] * 200_000}),  # type: ignore[operator]
    "messages at the bound": posting(CHAT_PATH, {**CHAT, "messages": CHAT["messages"] * 4_000}),  # type: ignore[operator]
    "wrong messages": posting(CHAT_PATH, {**CHAT, "messages": [1] * 30_000}),
    "a silent crowd": silent_crowd,
}


def percentile(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def measure(url: str, attack: Attack, attackers: int, tokens: int) -> dict[str, float]:
    """Alone first, then beside the attack."""
    alone = token_times(url, tokens)
    over = threading.Event()
    threads = [threading.Thread(target=attack, args=(url, over)) for _ in range(attackers)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        beside = token_times(url, tokens)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    p99 = percentile(alone, 0.99), percentile(beside, 0.99)
    return {
        "alone_median_s": statistics.median(alone),
        "alone_p99_s": p99[0],
        "beside_median_s": statistics.median(beside),
        "beside_p99_s": p99[1],
        "ratio": p99[1] / p99[0],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attackers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--note", help="what else the machine did")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {
        "machine": describe(),
        "note": args.note,
        "model": Path(args.model).name,
        "threads": args.threads,
        "attackers": args.attackers,
        "tokens": args.tokens,
        "results": {},
    }
    with serving(args.model, args.threads) as url:
        token_times(url, 50)
        for name, attack in ATTACKS.items():
            found = measure(url, attack, args.attackers, args.tokens)
            report["results"][name] = found
            print(
                f"{name:30} alone {1e3 * found['alone_p99_s']:7.1f} ms   "
                f"beside {1e3 * found['beside_p99_s']:7.1f} ms   {found['ratio']:.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
