"""What a quiet client's tokens take while others attack the server.

`python bench/beside_attacks.py [MODEL] [--only TEXT]... --json out.json`

One client reads a stream of tokens; beside it, one after the other, each attack goes on: requests
that are costly to read, to encode or to watch for stop strings, crowds of connections, and foreign
templates and grammars, which are worked on in guarded processes. Quiet streams and attacked ones
come in turns. The 99th percentile of the time between two tokens is set against that without an
attack: no more than twice as much holds. Two rows are no attacks: as many requests for tokens at a
time (`plain`), and for a token after a long prompt (`turns that fit`), which share the machine by
right. Where an attack is served such a prompt at last, `of_service` sets it against that row, and
holds. Beside the times stands what ran meanwhile, in processor
seconds for each of the quiet client's tokens: the server's event loop, its other threads (which
compute and encode), its guarded processes, and the attackers themselves, who are of this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from machine import describe
from strata.formats import open_model
from strata.hub.references import resolve

ALLOWED = 2.0
"""By how much the slow tokens may be slower beside an attack."""

TURNS = 3

Answers = Counter[int]
"""How often each status was the answer to an attacker."""


@dataclass(frozen=True)
class Attack:
    """What is done again and again until it is over. ``template``: that of the served model, None
    for its own. A ``service`` is no attack; ``served`` is the one that the attack gets at last."""

    go: Callable[[str, threading.Event, Answers], None]
    template: str | None = None
    service: bool = False
    served: str | None = None


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)


def posting(path: str, body: dict[str, Any], template: str | None = None) -> Attack:
    """The same request again and again."""
    data = json.dumps({"model": "it", **body}).encode()

    def attack(url: str, over: threading.Event, answers: Answers) -> None:
        while not over.is_set():
            with suppress(OSError, http.client.HTTPException):
                connection = connect(url)
                connection.request("POST", path, data, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                answers[answer.status] += 1
                connection.close()

    return Attack(attack, template)


def silent_crowd(url: str, over: threading.Event, answers: Answers) -> None:
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


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


def _schema(definition: Any) -> Attack:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": definition}}
    return posting(CHAT_PATH, {**CHAT, "max_tokens": 8, "response_format": form})


CHAT_PATH, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 1}
OLLAMA: dict[str, Any] = {"options": {"num_predict": 1}, "stream": False}
LONG = {"prompt": "a a a a", "max_tokens": 64, "temperature": 0}
_WIDE = {"type": "object", "properties": {f"p{i}": {"enum": list(range(40))} for i in range(400)}}
# Every way past the bounds of a sandbox takes either memory or time.
_ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 9 if j < 0 }}"
    "{% endfor %}{% endfor %}"
)
_GROWING = "{{ '%*d' | format(10 ** 9, 1) }}"
ATTACKS: dict[str, Attack] = {
    "plain": replace(posting(COMPLETIONS, LONG), service=True),
    "turns that fit": replace(
        posting(CHAT_PATH, {**CHAT, "messages": MESSAGES * 650}), service=True
    ),
    "stop strings of 100 kB": posting(COMPLETIONS, {**LONG, "stop": [" a" * 50_000] * 40}),
    "64 stop strings at the bound": posting(
        COMPLETIONS, {**LONG, "stop": [" a" * 500 + chr(65 + n % 26) for n in range(64)]}
    ),
    "special tokens": posting("/tokenize", {"content": "<|im_end|>" * 15_000}),
    "200,000 messages": posting(CHAT_PATH, {**CHAT, "messages": MESSAGES * 200_000}),
    "messages at the bound": posting(CHAT_PATH, {**CHAT, "messages": MESSAGES * 4_000}),
    "turns to be left out": replace(
        posting("/api/chat", {**OLLAMA, "messages": MESSAGES * 4_000}), served="turns that fit"
    ),
    "turns of which none fits": posting(
        "/api/chat",
        {**OLLAMA, "messages": [*MESSAGES * 3_900, {"role": "user", "content": "a b " * 5_000}]},
    ),
    "wrong messages": posting(CHAT_PATH, {**CHAT, "messages": [1] * 30_000}),
    "a silent crowd": Attack(silent_crowd),
    "a schema without end": _schema({"type": "integer", "multipleOf": 99999989}),
    "a schema 100 deep": _schema(_nested(100)),
    "a wide schema": _schema(_WIDE),
    "a hard pattern": _schema({"type": "string", "pattern": "(.*a){20}.{900}b"}),
    "a grammar that nests": posting(CHAT_PATH, {**CHAT, "grammar": "start: " + "(" * 5000}),
    "a template without end": posting(CHAT_PATH, CHAT, _ENDLESS),
    "a template that grows": posting(CHAT_PATH, CHAT, _GROWING),
}


@contextmanager
def serving(model: Path, threads: int) -> Iterator[tuple[str, int]]:
    """The address of a server in another process, and its number."""
    command = [sys.executable, "-m", "strata", "serve", str(model), "--alias", "it", "--port", "0"]
    process = subprocess.Popen(
        # Tokens that are guessed ahead come by several at a time.
        [*command, "--threads", str(threads), "--context", "4096", "--draft", "off"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("listening at "):
                yield line.split()[2], process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.communicate()


def with_template(model: Path, source: str, path: Path) -> Path:
    """The same model with another template, which is no longer than its own."""
    with open_model(model) as file:
        own = file.metadata["tokenizer.chat_template"].encode()
    path.write_bytes(model.read_bytes().replace(own, source.encode().ljust(len(own))))
    return path


def token_times(url: str, tokens: int) -> list[float]:
    """Seconds between the tokens of one answer."""
    body = {"model": "it", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True}
    connection = connect(url)
    data = json.dumps({**body, "ignore_eos": True, "temperature": 0})
    connection.request("POST", COMPLETIONS, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    came = []
    while line := answer.readline():
        if line.startswith(b"data: {"):
            came.append(time.perf_counter())
    connection.close()
    return [after - before for before, after in pairwise(came)]


def percentile(times: Sequence[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def processor_seconds(pid: int) -> dict[str, float]:
    """What ran until now, by who ran it; guarded processes that have ended are with their parent's
    children."""
    tick = os.sysconf("SC_CLK_TCK")

    def seconds(stat: Path, first: int = 11) -> float:
        # proc(5): utime and stime, and those of children that were waited for, behind the name.
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            return sum(map(int, fields[first : first + 2])) / tick
        return 0.0

    threads = {int(t.name): seconds(t / "stat") for t in Path(f"/proc/{pid}/task").iterdir()}
    guarded = seconds(Path(f"/proc/{pid}/stat"), 13)
    parents, found = {pid}, True
    while found:
        found = {
            int(p.name)
            for p in Path("/proc").iterdir()
            if p.name.isdigit() and int(p.name) not in parents and _parent(p) in parents
        }
        guarded += sum(seconds(Path(f"/proc/{n}/stat")) for n in found)
        guarded += sum(seconds(Path(f"/proc/{n}/stat"), 13) for n in found)
        parents |= found
    ours = os.times()
    return {
        "loop": threads.get(pid, 0.0),
        "threads": sum(threads.values()) - threads.get(pid, 0.0),
        "guarded": guarded,
        "attackers": ours.user + ours.system,
    }


def _parent(process: Path) -> int:
    with suppress(OSError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def measure(url: str, pid: int, attack: Attack, attackers: int, tokens: int) -> dict[str, Any]:
    """Alone and beside the attack, in turns."""
    alone: list[float] = []
    beside: list[float] = []
    answers = Answers()
    ran: Counter[str] = Counter()
    for _ in range(TURNS):
        alone += token_times(url, tokens // TURNS)
        before = processor_seconds(pid)
        beside += attacked(url, attack, attackers, tokens // TURNS, answers)
        ran.update({who: s - before[who] for who, s in processor_seconds(pid).items()})
    p99 = percentile(alone, 0.99), percentile(beside, 0.99)
    return {
        "answers": {str(status): count for status, count in sorted(answers.items())},
        "alone_median_s": statistics.median(alone),
        "alone_p99_s": p99[0],
        "beside_median_s": statistics.median(beside),
        "beside_p99_s": p99[1],
        "beside_most_s": max(beside),
        "ran_s_per_token": {who: seconds / len(beside) for who, seconds in ran.items()},
        "ratio": p99[1] / p99[0],
    }


def attacked(
    url: str, attack: Attack, attackers: int, tokens: int, answers: Answers
) -> list[float]:
    """Seconds between the tokens of an answer beside the attack."""
    over = threading.Event()
    threads = [
        threading.Thread(target=attack.go, args=(url, over, answers)) for _ in range(attackers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        return token_times(url, tokens)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument(
        "--only", action="append", help="attacks whose name has this in it; may be given again"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attackers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=330)
    parser.add_argument("--note", help="what else the machine did")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args(argv)
    chosen = {
        name: attack
        for name, attack in ATTACKS.items()
        if any(part in name for part in args.only or [""])
    }
    results: dict[str, Any] = {}
    model = resolve(args.model)
    with tempfile.TemporaryDirectory() as directory:
        for template in dict.fromkeys(attack.template for attack in chosen.values()):
            path = model
            if template is not None:
                path = with_template(model, template, Path(directory) / "model.gguf")
            with serving(path, args.threads) as (url, pid):
                token_times(url, 50)
                for name, attack in chosen.items():
                    if attack.template == template:
                        found = results[name] = measure(
                            url, pid, attack, args.attackers, args.tokens
                        )
                        if attack.served in results:
                            service = results[attack.served]["beside_p99_s"]
                            found["of_service"] = found["beside_p99_s"] / service
                        print(line(name, found), flush=True)
    attacks = [name for name in results if not ATTACKS[name].service]
    held = sum(
        results[name].get("of_service", results[name]["ratio"]) <= ALLOWED for name in attacks
    )
    print(f"{held} of {len(attacks)} hold")
    report: dict[str, Any] = {
        "machine": describe(),
        "note": args.note,
        "model": model.name,
        "threads": args.threads,
        "attackers": args.attackers,
        "tokens": args.tokens,
        "of": len(attacks),
        "held": held,
        "results": results,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def line(name: str, found: dict[str, Any]) -> str:
    alone, beside = (1e3 * found[f"{which}_p99_s"] for which in ("alone", "beside"))
    times = f"alone {alone:7.1f} ms   beside {beside:7.1f} ms   {found['ratio']:.2f}"
    ran = ", ".join(f"{who} {1e3 * s:.1f}" for who, s in found["ran_s_per_token"].items())
    served = f" ({found['of_service']:.2f} of its service)" if "of_service" in found else ""
    return f"{name:30} {times}{served}   {found['answers']}   ms a token: {ran}"


if __name__ == "__main__":
    main()
