"""Attacks on a server of several models: each ends in an answer or in an error of the client's.

`strata serve` has two models of the command line, two of a file of presets and one that is none; a
stand-in for the hub is in a thread here. Several clients list, show, make, copy, pull, delete, load
and unload models, ask them, and change the budget; values, keys or bytes of most requests are
changed. What ends in a 500, in no answer within 10 seconds (60 where a model may have to be loaded
first, or be let finish), in a closed connection or in a body that is no JSON is not allowed; nor is
a process in front that takes more than its share, or all together more than the budget, or a file
of others that is gone at the end.

With `--fake` the processes behind the front are none: they take no time, and what is attacked is
the front alone, some hundred times a second.

`python bench/fuzz_fleet.py --requests 2000 --json out.json`; `--only N` sends one of them alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fuzz_files import Seeds
from fuzz_requests import Answered, Asked, ask
from machine import describe
from mutations import RAW, change, change_bytes
from request_forms import POSTS
from support.stand_in_hub import Repository, StandInHub

CLIENTS = 3
LOADED_S = 60.0
BUDGET = 700_000_000
NAMES = ("one", "two", "preset", "briefly", "broken", "made", "copied", "some/repo", "some/other")
PULLED = ("some/repo", "some/repo:Q4_0", "some/repo@main", "some/other", "some/bad", "some/none")
PULLED += ("hf.co/some/repo", "smollm2x", "../one.gguf", "/etc/passwd", "~/x", "a/b/c/d", "src/x")
WRONG_NAMES = (
    "",
    ".",
    "..",
    "a b",
    "a\nb",
    "\x00",
    "x" * 5000,
    "\u00e9",
    "one:latest",
    "../x",
    "-",
)
DURATIONS = (0, -1, "5m", "1h30m", "1" * 5000, "1" * 500_000, 10**400, "nan", -1e308, [], "0.1s")
BUDGETS = (1, "1GB", "700MB", "400MB", 2**70, -5, "9" * 400, 1e999, None, "EB", [700_000_000])
DEEP = "[" * 500 + "]" * 500
LARGE: tuple[Any, ...] = ([[]] * 150_000, "x" * 900_000, "\u4e2d" * 300_000, {"a": [1] * 100_000})

SHORT = {"max_tokens": 2, "stream": False}
CHAT = {"messages": [{"role": "user", "content": "hi"}], **SHORT}
MODELFILE = {
    "model": "made",
    "from": "one",
    "system": "Be brief.",
    "parameters": {"temperature": 0.5, "num_ctx": 64, "stop": ["a"], "num_predict": 2, "seed": 1},
    "stream": False,
}
PRESETS = """
[models.preset]
model = "two.gguf"
aliases = ["again"]
context = 64
system = "Be brief."
sampling = {{ temperature = 0.5, stop = ["zz"] }}
[models.briefly]
model = "one.gguf"
keep_alive = "1s"
[models.broken]
model = "broken.gguf"
"""


@dataclass(frozen=True)
class Attack:
    """A request, and for how long it may take."""

    asked: Asked
    seconds: float | None = None


def attack(number: int) -> Attack:
    """The attack of that number."""
    rng = random.Random(number)
    name = rng.choice(NAMES) if rng.random() < 0.9 else rng.choice(WRONG_NAMES)
    kind = rng.choice(list(KINDS))
    method, path, body, slow = KINDS[kind](rng, name)
    raw = None
    if body is not None:
        body = copy.deepcopy(body)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            change(body, rng)
        if rng.random() < 0.05:
            body[rng.choice([*body, "ignored"])] = rng.choice(LARGE)
        raw = json.dumps(body).encode()
        how = rng.random()
        if how < 0.08:
            raw = change_bytes(raw, rng)
        elif how < 0.1:
            raw = rng.choice([*RAW, DEEP]).encode("utf-8", "replace")
    return Attack(Asked(method, path, raw), LOADED_S if slow else None)


Made = tuple[str, str, Any, bool]


def _passed_on(rng: random.Random, name: str) -> Made:
    path = rng.choice(list(POSTS))
    return "POST", path, {**POSTS[path], **SHORT, "model": name}, True


def _chatted(rng: random.Random, name: str) -> Made:
    keep = {} if rng.random() < 0.4 else {"keep_alive": rng.choice(DURATIONS)}
    return "POST", "/api/chat", {"model": name, **CHAT, **keep}, True


def _stopped(rng: random.Random, name: str) -> Made:
    path = rng.choice(("/api/generate", "/api/chat"))
    return "POST", path, {"model": name, "keep_alive": 0}, True


def _made(rng: random.Random, name: str) -> Made:
    body: dict[str, Any] = {**copy.deepcopy(MODELFILE), "from": name}
    body["model"] = rng.choice(("made", "made", "more", rng.choice(WRONG_NAMES)))
    parameters = body["parameters"]
    parameters["num_ctx"] = rng.choice((64, 2, 1, 10**9, -1, 0.5, "64", True, None))
    parameters["stop"] = rng.choice((["a"], "a", 5, None, ["a"] * 1000, ["a" * 10**5], [[]], [""]))
    if rng.random() < 0.2:
        body["template"] = rng.choice(("{{ messages }}", "{% for", "{{ .Prompt }}", "{{" * 10**5))
    if rng.random() < 0.1:
        body[rng.choice(("files", "adapters", "messages"))] = [[]] * 500
    return "POST", "/api/create", body, False


def _pulled(rng: random.Random, name: str) -> Made:
    key = rng.choice(("model", "name"))
    wanted = rng.choice(PULLED) if rng.random() < 0.8 else name
    return "POST", "/api/pull", {key: wanted, "stream": rng.random() < 0.5}, True


def _copied(rng: random.Random, name: str) -> Made:
    to = rng.choice(("copied", "copied", "one", rng.choice(WRONG_NAMES), f"copy{rng.random()}"))
    return "POST", "/api/copy", {"source": name, "destination": to}, False


def _deleted(rng: random.Random, name: str) -> Made:
    # Whoever deletes waits for the answers of what is deleted.
    return rng.choice(("DELETE", "POST")), "/api/delete", {"model": name}, True


def _got(rng: random.Random, name: str) -> Made:
    shown = quote(name[:2000], errors="replace")
    paths = ("/v1/models", f"/v1/models/{shown}", "/api/tags", "/api/ps", "/api/version", "/health")
    paths += (
        "/metrics",
        f"/metrics?model={shown}",
        "/memory",
        f"/v1/responses/{shown}",
        "/nothing",
    )
    paths += (f"/props?model={shown}", f"/v1/responses/{shown}/input_items")
    method = rng.choice(("GET", "GET", "GET", "HEAD", "DELETE", "PUT"))
    path = rng.choice(paths)
    return method, path, None, path.startswith("/props") or path == "/nothing"


KINDS: dict[str, Any] = {
    "passed on": _passed_on,
    "chatted": _chatted,
    "stopped": _stopped,
    "made": _made,
    "pulled": _pulled,
    "copied": _copied,
    "deleted": _deleted,
    "shown": lambda rng, name: ("POST", "/api/show", {"model": name}, False),
    "got": _got,
    "listed": lambda rng, name: ("GET", rng.choice(("/api/tags", "/api/ps")), None, False),
    "budget": lambda rng, name: ("POST", "/memory", {"memory": rng.choice(BUDGETS)}, True),
}


def models(directory: Path) -> list[str]:
    """What the server is given: models of the command line and of a file of presets."""
    Seeds(directory / "seeds")
    for name, family in (("one", "llama"), ("two", "qwen2")):
        (directory / "seeds" / f"{family}.gguf").rename(directory / f"{name}.gguf")
    (directory / "broken.gguf").write_bytes(b"GGUF" + bytes(3000))
    (directory / "models.toml").write_text(PRESETS.format())
    return [str(directory / "one.gguf"), str(directory / "two.gguf")]


@contextmanager
def hub(directory: Path) -> Iterator[StandInHub]:
    """A hub with a model, one of several parts, and what is none."""
    gguf = (directory / "one.gguf").read_bytes()
    served = StandInHub(
        {
            "some/repo": Repository({"model-Q4_0.gguf": gguf, "README.md": b"x"}),
            "some/other": Repository({"other.gguf": (directory / "two.gguf").read_bytes()}),
            "some/bad": Repository({"bad.gguf": b"GGUF" + b"\xff" * 3000}),
        }
    )
    try:
        yield served
    finally:
        served.close()


# The front with processes that are none, and no hub.
_FAKE = """
import sys
from pathlib import Path
sys.path += sys.argv[1:3]
from support.fake_children import FakeChildren
from strata.server.fleet import fleet as module
from strata.server.fleet.entries import Entries, given, read_entries, saved_path
from strata.server.fleet.front import Front, own_bytes
from strata.server.listening import bind
from strata.server.serving import Server
from strata.server.settings import Settings
module.Child = FakeChildren()
settings = Settings(port=0, grace_s=1.0)
*models, file, budget = sys.argv[3:]
entries = [*map(given, models), *read_entries(Path(file))]
options = {"context": 128, "parallel": 2, "threads": 1, "kv_type": None, "draft": "off"}
listening = bind(settings)
fleet = module.Fleet(
    Entries(entries, saved_path()),
    int(budget),
    own_bytes(),
    defaults=options,
    worker_settings={},
    grace_s=1.0,
)
say = lambda address: print("listening at", address, file=sys.stderr, flush=True)
Server(Front(fleet, settings), listening, say).serve_until_stopped()
"""


def _command(directory: Path, given: list[str], fake: bool) -> list[str]:
    file = str(directory / "models.toml")
    if fake:
        tests = [str(Path(__file__).resolve().parents[1] / name) for name in ("tests", "bench")]
        return [sys.executable, "-c", _FAKE, *tests, *given, file, str(BUDGET)]
    command = [sys.executable, "-m", "strata", "serve", *given, "--port", "0", "--threads", "1"]
    command += ["--models", file, "--context", "128", "--parallel", "2"]
    return [*command, "--keep-alive", "20s", "--memory", f"{BUDGET}B"]


@contextmanager
def served(
    directory: Path, given: list[str], endpoint: str, fake: bool
) -> Iterator[tuple[str, int]]:
    """The address of the server, and the number of the process in front."""
    command = _command(directory, given, fake)
    places = {"STRATA_HOME": str(directory / "home"), "HF_HOME": str(directory / "hf")}
    environment = {**os.environ, **places, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    # What is not known yet of the machine is measured, for which no request is to wait.
    probe = [sys.executable, "-m", "strata", "probe", given[0]]
    if not fake:
        subprocess.run(probe, env=environment, capture_output=True, check=True)
    log = directory / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, text=True, env=environment)
        try:
            until = time.monotonic() + 60
            while not (lines := [x for x in log.open() if x.startswith("listening at http://")]):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"no server: {log.read_text()}")
                time.sleep(0.05)
            yield lines[0].split()[2], process.pid
        finally:
            process.terminate()
            process.wait(60)


class Watch:
    """Looks at the processes' sizes until it is over: the one in front, and all of them."""

    def __init__(self, pid: int) -> None:
        self.front = self.all = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.front = max(self.front, _status(self._pid, "VmHWM"))
            # What several have mapped is counted for each: too much, never too little.
            self.all = max(self.all, sum(_status(p, "RssAnon") for p in _family(self._pid)))


def _status(pid: int, key: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    return 0


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def get(url: str, path: str) -> Any:
    """The JSON of an endpoint."""
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        return json.load(answer)


REPAIR = Attack(Asked("POST", "/memory", json.dumps({"memory": BUDGET}).encode()), LOADED_S)


def main() -> None:
    """Send the requests and tell what they ended in; exit code 1 if any was not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--minutes", type=float, default=60.0, help="none are sent after so many")
    parser.add_argument("--only", type=int, help="this request alone")
    parser.add_argument("--fake", action="store_true", help="no processes behind the front")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.requests)
    if args.only is not None:
        numbers = range(args.only, args.only + 1)
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        given = models(directory)
        others = {path: path.read_bytes() for path in directory.glob("*.gguf")}
        with (
            hub(directory) as there,
            served(directory, given, there.endpoint, args.fake) as (url, pid),
        ):

            def one(number: int) -> tuple[int, Answered] | None:
                if time.monotonic() > until:
                    return None
                made = attack(number)
                answered = ask(url, made.asked, made.seconds)
                if "cannot be served: " in answered.wrong:
                    # A file that was given and is no model: an error of the server's, with a name.
                    answered = replace(answered, wrong="")
                if made.asked.path == "/memory" and made.asked.method == "POST":
                    ask(url, REPAIR.asked, REPAIR.seconds)
                if answered.wrong or args.only is not None:
                    print(
                        f"request {number}: {made.asked.method} {made.asked.path} {answered.wrong}",
                        flush=True,
                    )
                if args.only is not None:
                    print((made.asked.body or b"")[:2000], answered, flush=True)
                return number, answered

            with Watch(pid) as watch, ThreadPoolExecutor(CLIENTS) as clients:
                answers = dict(filter(None, clients.map(one, numbers)))
                late = [number for number, answered in answers.items() if answered.late]
                for number in late:
                    again = attack(number)
                    answers[number] = ask(url, again.asked, again.seconds)
            alive = Path(f"/proc/{pid}").exists()
            share = get(url, "/memory")["owned"]["front"] if alive else 0
            log = (directory / "log").read_text()
        gone = [path.name for path, raw in others.items() if path.read_bytes() != raw]
    wrong = {n: a for n, a in answers.items() if a.wrong}
    kinds = {True: "of the front", False: "that wait for models"}
    longest = {
        kind: max(
            (a.seconds for n, a in answers.items() if (attack(n).seconds is None) == own),
            default=0.0,
        )
        for own, kind in kinds.items()
    }
    told = {
        "machine": describe(),
        "processes": "fake" if args.fake else "real",
        "requests": len(answers),
        "statuses": dict(sorted(Counter(a.status for a in answers.values()).items())),
        "not_allowed": [
            {"request": n, "path": attack(n).asked.path, "why": a.wrong} for n, a in wrong.items()
        ],
        "longest_s": longest,
        "asked_for_once_more": len(late),
        "server_alive": alive,
        "front_bytes": {"most": watch.front, "share": share},
        "all_bytes": {"most": watch.all, "budget": BUDGET},
        "files_of_others_gone": gone,
        "failures_in_the_log": log.count("Traceback"),
    }
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({k: v for k, v in told.items() if k not in ("machine", "not_allowed")}))
    if "Traceback" in log:
        print(log[-6000:])
    held = alive and watch.front <= share and watch.all <= BUDGET and not gone
    sys.exit(bool(wrong) or not held or "Traceback" in log)


if __name__ == "__main__":
    main()
