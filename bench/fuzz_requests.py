"""Attacks on every field of every endpoint: each ends in an answer or in an error of the client's.

Servers with a tiny model that chats, one that embeds and one that ranks are asked by several
clients at once. Every request begins as one that
uses all fields of its endpoint in the form of that protocol; then values, keys or bytes of its body
are changed. Files are sent, in forms that are changed, too, and those that are taken are made
batches of. What ends in a 500, in no answer within 10 seconds, in a closed connection, in a body
that is no JSON or in an answer of the server's own failing is not allowed, nor is a batch that does
not end. An answer that came too late is asked for once more when all others have come, by itself:
then the time is its own.

`python bench/fuzz_requests.py --requests 20000 --json out.json`; `--only N` sends one again.
"""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fuzz_files import Seeds
from machine import describe
from mutations import RAW, STRINGS, change, change_bytes
from request_forms import BEAMED, BEAMS, OF_EMBEDDING, OF_RANKING, POSTS, SCHEMAS
from support.encoders import encoder, words

SECONDS = 10.0
STARTED_S = 300.0
CLIENTS = 6
LATE_S = 120.0
"""For which an answer that comes too late is waited for: were its connection closed meanwhile, the
work would end."""

BATCHES_S = 120.0
"""In which batches have ended after the last request."""
_MOST_TOLD = 600

GETS = ("/v1/models", "/v1/models/", "/api/tags", "/api/ps", "/api/version", "/health", "/metrics")
GETS += ("/props", "/slots", "/lora-adapters", "/v1/responses/", "/v1/files", "/v1/files/")
GETS += ("/tools", "/memory")
GETS += ("/v1/batches", "/v1/batches/", "/v1/files?after=", "/v1/batches?limit=")
# An MCP server whose tool gives back what it is given.
TOOL = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        given = asked.get("params", {}).get("arguments", {})
        content = [{"type": "text", "text": json.dumps(given)}]
        result = {"tools": [{"name": "say"}], "content": content}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
FILES = "/v1/files"
BATCHES = "/v1/batches"
IN_BATCHES = ("/v1/chat/completions", "/v1/completions")
# Two of them at once are an error of their own, so mostly there is one.
_MEANT = frozenset(
    (
        *("model", "messages", "prompt", "content", "tokens", "input", "query", "documents"),
        *("input_prefix", "input_suffix", "tool"),
    )
)
_FORMS = (
    "json_schema",
    "text",
    "response_format",
    "grammar",
    "regex",
    "format",
    "output_config",
    "tools",
)

_OF_A_SEARCH = ("model", "prompt", "messages", "temperature", "ignore_eos")


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    body: bytes | None
    kind: str = "application/json"

    @property
    def of(self) -> str:
        """The server that it is for."""
        if self.path in OF_EMBEDDING:
            return "embeds"
        return "ranks" if self.path in OF_RANKING else "chats"


def request(number: int, names: Mapping[str, str]) -> Asked:
    """The request of that number, to models of these names."""
    rng = random.Random(number)
    if rng.random() < 0.03:
        path = rng.choice(GETS)
        path += quote(rng.choice(STRINGS)[:2000], errors="replace") if path[-1] in "/=" else ""
        return Asked(rng.choice(("GET", "GET", "HEAD", "POST", "DELETE")), path, None)
    if rng.random() < 0.05:
        return _upload(rng)
    path = rng.choice(list(POSTS))
    body = {"model": names[Asked("POST", path, None).of], **copy.deepcopy(POSTS[path])}
    forms = [key for key in _FORMS if key in body]
    kept = rng.choice([*forms, None])
    for key in forms:
        if key != kept and rng.random() < 0.9:
            del body[key]
    body["stream"] = rng.random() < 0.3
    for key in list(body):
        if key not in _MEANT and rng.random() < 0.3:
            del body[key]
    if path in BEAMED and rng.random() < 0.2:
        # Beside most other fields there is no search.
        body = {key: body[key] for key in body if key in _OF_A_SEARCH}
        body |= {"n": rng.randrange(1, 4), "max_tokens": 3, **BEAMS}
    if rng.random() < 0.1:
        _put_schema(body, rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        change(body, rng)
    # In the form that is short and that a client may choose: surrogates are escapes.
    raw = json.dumps(body).encode()
    how = rng.random()
    if how < 0.1:
        raw = change_bytes(raw, rng)
    elif how < 0.12:
        raw = rng.choice(RAW).encode("utf-8", "replace")
    kind = "application/json" if rng.random() < 0.95 else rng.choice(("", "text/plain", "\u00e9/x"))
    return Asked("POST", path, raw, kind)


def _upload(rng: random.Random) -> Asked:
    """A file of some requests."""
    lines = []
    for number in range(rng.randrange(1, 4)):
        path = rng.choice(IN_BATCHES)
        body = {key: value for key, value in POSTS[path].items() if key not in _FORMS}
        asked = {"custom_id": str(number), "method": "POST", "url": path, "body": body}
        asked = copy.deepcopy(asked)
        for _ in range(rng.choice((0, 1, 1, 2))):
            change(asked, rng)
        line = json.dumps(asked).encode()
        lines.append(change_bytes(line, rng) if rng.random() < 0.2 else line)
    purpose = rng.choice(("batch", "batch", "batch", "evals", ""))
    form = (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    form += b"\n".join(lines) + b"\r\n--b--\r\n"
    if rng.random() < 0.3:
        form = change_bytes(form, rng)
    return Asked("POST", FILES, form, "multipart/form-data; boundary=b")


def batch_of(file: bytes, number: int) -> Asked:
    """A batch of the file that an upload was answered with, in a request that may be changed."""
    rng = random.Random(-1 - number)
    asked = {
        "input_file_id": json.loads(file)["id"],
        "endpoint": rng.choice(IN_BATCHES),
        "completion_window": "24h",
        "metadata": {"a": "b", "c": rng.choice(STRINGS)[:600]},
    }
    if rng.random() < 0.3:
        change(asked, rng)
    return Asked("POST", BATCHES, json.dumps(asked).encode())


def open_batches(url: str) -> list[str]:
    """Batches that have not ended."""
    found, after = [], ""
    while True:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)
        connection.request("GET", f"{BATCHES}?limit=100{after}")
        page = json.loads(connection.getresponse().read())
        connection.close()
        ended = ("completed", "failed", "cancelled")
        found += [each["id"] for each in page["data"] if each["status"] not in ended]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


def _put_schema(body: dict[str, Any], rng: random.Random) -> None:
    schema = rng.choice(SCHEMAS)
    if "response_format" in body:
        body["response_format"]["json_schema"] = {"name": "a", "schema": schema}
    elif "output_config" in body:
        body["output_config"]["format"]["schema"] = schema
    elif "format" in body:
        body["format"] = schema
    elif "json_schema" in body:
        body["json_schema"] = schema
    elif "text" in body:
        body["text"]["format"]["schema"] = schema
    elif body.get("tools") and "parameters" in body["tools"][0]:
        body["tools"][0]["parameters"] = schema
        body["tool_choice"] = "required"
    elif body.get("tools") and "function" in body["tools"][0]:
        body["tools"][0]["function"]["parameters"] = schema
        body["tool_choice"] = "required"


@dataclass(frozen=True)
class Answered:
    """``wrong`` says why it was not allowed, empty where it was."""

    status: int
    seconds: float
    wrong: str
    body: bytes = b""

    @property
    def late(self) -> bool:
        """Whether it came, and only too late."""
        return self.wrong.startswith("took ")


def ask(url: str, asked: Asked, within_s: float | None = None) -> Answered:
    """Send a request on a connection of its own and look at what comes back."""
    within_s = within_s or SECONDS
    parts = urlsplit(url)
    started = time.perf_counter()
    waits = max(within_s, LATE_S)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=waits)
    status, wrong, body = 0, "", b""
    try:
        headers = {"Content-Type": asked.kind.encode("utf-8")} if asked.body is not None else {}
        connection.request(asked.method, asked.path, asked.body, headers)
        response = connection.getresponse()
        status, kind = response.status, response.headers.get_content_type()
        body = response.read()
        wrong = _wrong(status, kind, body, asked.method)
    except TimeoutError:
        wrong = f"no answer within {waits:g} s"
    except (OSError, http.client.HTTPException) as error:
        wrong = f"disconnected: {type(error).__name__}: {error}"
    finally:
        connection.close()
    seconds = time.perf_counter() - started
    if not wrong and seconds > within_s:
        wrong = f"took {seconds:.1f} s"
    return Answered(status, seconds, wrong, body if asked.path == FILES else b"")


def _wrong(status: int, kind: str, body: bytes, method: str) -> str:
    # Not now (503), and never with this model (501), are refusals with a name.
    if status >= 500 and status not in (501, 503):
        return f"status {status}: {body[:_MOST_TOLD]!r}"
    if method == "HEAD" or kind == "text/plain":
        return ""
    if kind == "application/json":
        try:
            json.loads(body)
        except ValueError:
            return f"status {status}: no JSON: {body[:_MOST_TOLD]!r}"
        return "" if status < 400 or b"error" in body else f"status {status} without an error"
    for line in body.decode("utf-8", "replace").splitlines():
        text = line.removeprefix("data:").strip()
        if text.startswith("{") and "internal" in text and "error" in text:
            return f"failed on its way: {text[:_MOST_TOLD]}"
    return ""


@contextmanager
def served(model: Path, files: str, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server with the model and ``more`` options, its address and its process."""
    command = [sys.executable, "-m", "strata", "serve", str(model), "--port", "0", "--threads", "1"]
    with tempfile.NamedTemporaryFile("w+", prefix="serve-log") as log:
        command += ["--context", "128", "--files", files, *more]
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            until = time.monotonic() + STARTED_S
            while True:
                log.seek(0)
                lines = [line for line in log if line.startswith("listening at http://")]
                if lines:
                    break
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"no server: {log.read()}")
                time.sleep(0.05)
            yield lines[0].split()[2], process
        finally:
            process.kill()
            process.wait()


def _resident(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Bytes of a process now and at most."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line}
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


Servers = Mapping[str, tuple[str, subprocess.Popen[str]]]


def dead(servers: Servers) -> bool:
    """Whether one of them has ended."""
    return any(process.poll() is not None for _, process in servers.values())


def models(directory: Path) -> dict[str, Path]:
    """A model for each kind of server."""
    vocabulary = words("hi there")
    return {
        "chats": Seeds(directory).directories["llama"],
        "embeds": encoder(directory / "embeds.gguf", types=1, **vocabulary),
        "ranks": encoder(directory / "ranks.gguf", types=1, ranks=True, **vocabulary),
    }


def listed(url: str) -> str:
    """What a server calls its model."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", "/v1/models")
    return str(json.loads(connection.getresponse().read())["data"][0]["id"])


def main() -> None:
    """Send the requests and tell what they ended in; exit code 1 if any was not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--minutes", type=float, default=60.0, help="none are sent after so many")
    parser.add_argument("--only", type=int, help="this request alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.requests)
    if args.only is not None:
        numbers = range(args.only, args.only + 1)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "tool.py").write_text(TOOL)
        echo = {"command": sys.executable, "args": [str(directory / "tool.py")]}
        (directory / "mcp.json").write_text(json.dumps({"mcpServers": {"echo": echo}}))
        more = ("--mcp-servers", str(directory / "mcp.json"), "--allow-unauthenticated")
        servers = {
            kind: stack.enter_context(
                served(model, str(directory / "files"), *more)
                if kind == "chats"
                else served(model, "none")
            )
            for kind, model in models(directory).items()
        }
        names = {kind: listed(url) for kind, (url, _) in servers.items()}
        before = sum(_resident(process)[0] for _, process in servers.values())

        until = time.monotonic() + 60 * args.minutes
        sizes: list[int] = []

        def one(number: int) -> tuple[int, Answered] | None:
            if time.monotonic() > until:
                return None
            if number % 2000 == 0 and not dead(servers):
                sizes.append(sum(_resident(process)[0] for _, process in servers.values()))
            asked = request(number, names)
            answered = ask(servers[asked.of][0], asked)
            if asked.path == FILES and asked.method == "POST" and answered.status == 200:
                answered = ask(servers[asked.of][0], batch_of(answered.body, number))
            if (answered.wrong and not answered.late) or args.only is not None:
                print(f"request {number}: {asked.path} {answered.wrong}", flush=True)
            if args.only is not None:
                print((asked.body or b"").decode("utf-8", "replace"), answered, flush=True)
            return number, answered

        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = dict(filter(None, clients.map(one, numbers)))
        late = [number for number, answered in answers.items() if answered.late]
        for number in late:
            asked = request(number, names)
            answers[number] = ask(servers[asked.of][0], asked)
            print(f"request {number}: {asked.path} alone: {answers[number].seconds:.1f} s")
        alive = not dead(servers)
        left: list[str] = []
        until = time.monotonic() + BATCHES_S
        while alive and (left := open_batches(servers["chats"][0])) and time.monotonic() < until:
            time.sleep(0.2)
        if alive and left:
            print(f"batches that do not end: {left}", flush=True)
        alive = alive and not dead(servers)
        ends = [_resident(process) for _, process in servers.values()] if alive else []
        after, most = (sum(end[i] for end in ends) for i in (0, 1))
    wrong = {n: a for n, a in answers.items() if a.wrong}
    told = {
        "machine": describe(),
        "requests": len(answers),
        "statuses": dict(sorted(Counter(a.status for a in answers.values()).items())),
        "not_allowed": [
            {"request": n, "path": request(n, names).path, "why": a.wrong} for n, a in wrong.items()
        ],
        "longest_s": max(a.seconds for a in answers.values()),
        "asked_for_once_more": len(late),
        "batches_that_do_not_end": len(left),
        "server_alive": alive,
        # After every 2000 requests, to see whether it goes on growing.
        "server_bytes": {"before": before, "between": sizes, "after": after, "most": most},
    }
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({k: v for k, v in told.items() if k not in ("machine", "not_allowed")}))
    sys.exit(bool(wrong) or not alive or bool(left))


if __name__ == "__main__":
    main()
