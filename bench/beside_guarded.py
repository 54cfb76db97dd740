"""Token times of a quiet client beside foreign templates and grammars, in guarded processes:
`python bench/beside_guarded.py --json > RESULT`.

A server of its own answers one client, who streams completions one after the other; then the same
while attackers send what each attack consists of, over and over. The 99th percentile of the time
between two tokens beside an attack is set against that without one, of runs just before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import describe
from strata.formats import open_model
from strata.hub.references import resolve

ALLOWED = 2.0
"""By how much the slow tokens may be slower beside an attack."""

# Every way past the bounds of a sandbox takes either memory or time.
ENDLESS_TEMPLATE = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 9 if j < 0 }}"
    "{% endfor %}{% endfor %}"
)
GROWING_TEMPLATE = "{{ '%*d' | format(10 ** 9, 1) }}"


def schema(definition: Any) -> dict[str, Any]:
    return {
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Go."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": definition},
        },
    }


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"type": "array", "items": inner}
    return inner


CHAT = {"max_tokens": 1, "messages": [{"role": "user", "content": "Go."}]}
WIDE = {"type": "object", "properties": {f"p{i}": {"enum": list(range(40))} for i in range(400)}}
# Name: the template of the served model (None: its own), the body of a chat that is sent.
ATTACKS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "a schema without end": (None, schema({"type": "integer", "multipleOf": 99999989})),
    "a schema 100 deep": (None, schema(nested(100))),
    "a wide schema": (None, schema(WIDE)),
    "a hard pattern": (None, schema({"type": "string", "pattern": "(.*a){20}.{900}b"})),
    "a grammar that nests": (None, {**CHAT, "grammar": "start: " + "(" * 5000}),
    "a template without end": (ENDLESS_TEMPLATE, CHAT),
    "a template that grows": (GROWING_TEMPLATE, CHAT),
}


def post(url: str, path: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=120)


@contextmanager
def served(model: Path, threads: int) -> Iterator[str]:
    command = [sys.executable, "-m", "strata", "serve", str(model), "--port", "0", "--alias", "m"]
    server = subprocess.Popen(
        [*command, "--threads", str(threads)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if line.startswith("listening at http://"):
                yield line.split()[2]
                return
        raise SystemExit("the server did not start")
    finally:
        server.terminate()
        server.communicate()


def gaps(url: str, seconds: float) -> list[float]:
    """Seconds between two tokens of a quiet client."""
    found: list[float] = []
    end = time.monotonic() + seconds
    body = {"model": "m", "prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
    while time.monotonic() < end:
        last = None
        with post(url, "/v1/completions", body) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        found.append(now - last)
                    last = now
    return found


def attack(url: str, body: Mapping[str, Any], stop: threading.Event, codes: Counter[int]) -> None:
    while not stop.is_set():
        try:
            with post(url, "/v1/chat/completions", {**body, "model": "m"}) as answer:
                answer.read()
                codes[answer.status] += 1
        except urllib.error.HTTPError as error:
            codes[error.code] += 1
            error.close()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(url: str, body: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    quiet = gaps(url, args.seconds / 2)
    stop, codes = threading.Event(), Counter[int]()
    attackers = [
        threading.Thread(target=attack, args=(url, body, stop, codes))
        for _ in range(args.attackers)
    ]
    for attacker in attackers:
        attacker.start()
    beside = gaps(url, args.seconds)
    stop.set()
    for attacker in attackers:
        attacker.join()
    quiet += gaps(url, args.seconds / 2)
    row: dict[str, Any] = {"answers": {str(code): number for code, number in codes.items()}}
    for name, values in (("quiet", quiet), ("beside", beside)):
        row[name] = {
            "tokens": len(values),
            "p50_ms": 1e3 * percentile(values, 0.5),
            "p99_ms": 1e3 * percentile(values, 0.99),
            "most_ms": 1e3 * max(values),
        }
    row["ratio"] = row["beside"]["p99_ms"] / row["quiet"]["p99_ms"]
    return row


def with_template(model: Path, source: str, path: Path) -> Path:
    """The same model with another template, which is no longer than its own."""
    with open_model(model) as file:
        own = file.metadata["tokenizer.chat_template"].encode()
    path.write_bytes(model.read_bytes().replace(own, source.encode().ljust(len(own))))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", help="attacks whose name has this in it")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--attackers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = resolve(args.model)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (template, body) in ATTACKS.items():
            if args.only and args.only not in name:
                continue
            path = model
            if template is not None:
                path = with_template(model, template, Path(directory) / "model.gguf")
            with served(path, args.threads) as url:
                row = rows[name] = measure(url, body, args)
            print(
                f"{name:24s} p99 {row['quiet']['p99_ms']:6.1f} -> {row['beside']['p99_ms']:6.1f} ms"
                f"  {row['ratio']:.2f}  {row['answers']}",
                file=sys.stderr,
                flush=True,
            )
    held = sum(row["ratio"] <= ALLOWED for row in rows.values())
    if args.json:
        result = {"machine": describe(), "attackers": args.attackers, "held": held, "rows": rows}
        print(json.dumps(result, indent=1))
    else:
        print(f"{held} of {len(rows)} hold")


if __name__ == "__main__":
    main()
