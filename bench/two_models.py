"""Two models in a budget that holds one and a half, asked by turns in a control group of it.

`python bench/two_models.py [--shape llama-3.2-1b] [--recipe Q4_0] [--seconds 300] --json out.json`

Two files of a published shape with different random weights are written (or `--models A B` given).
First each is served alone, without a budget, and answers a set of questions, greedy and drawn.
Then both are served by one `strata serve` in a control group of exactly its `--memory`: one and a
half times what one of them takes with all its weights, and once the server's own. Clients alternate
between the models for `--seconds`, with streams and without. Told are requests, errors, answers
that differ from those alone, how often processes were killed, the group's peak, and seconds of an
answer by model, the first one (which loads) apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from cgroups import Group, group
from machine import describe
from strata.formats import open_model
from strata.hub.references import resolve
from strata.synth import SHAPES, write_model

MB = 10**6
FRONT_BYTES = 120 * MB
"""Of the process that has the port."""

QUESTIONS = (
    "Name three rivers.",
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "Count to five.",
)
TOKENS = 16


@dataclass
class Found:
    """What the clients saw."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


def body(model: str, number: int, *, stream: bool = False) -> dict[str, Any]:
    """Question ``number``; odd ones are drawn."""
    drawn = {"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0}
    question = QUESTIONS[number // 2 % len(QUESTIONS)]
    return {
        "model": model,
        "prompt": question,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": stream,
        **drawn,
    }


def ask(url: str, said: dict[str, Any]) -> str:
    """The text of an answer."""
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(said).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        if not said["stream"]:
            return str(json.load(answer)["choices"][0]["text"])
        text = ""
        for line in answer:
            if line.startswith(b"data: {"):
                part = json.loads(line[6:])
                if "error" in part:
                    raise ValueError(part["error"]["message"])
                text += "".join(choice["text"] for choice in part["choices"])
            elif line.startswith(b"data: [DONE]"):
                return text
    raise ValueError("the stream was cut")


@contextmanager
def served(
    models: Sequence[Path], options: Sequence[str], within: Group | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`strata serve`, and its address."""
    command = [sys.executable, "-m", "strata", "serve", *map(str, models), "--port", "0", *options]
    command = command if within is None else within.entering(command)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while not lines[-1].startswith("listening at http://"):
            if not lines[-1]:
                raise SystemExit(f"no server: {''.join(lines)}")
            lines.append(process.stderr.readline())
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, lines[-1].split()[2]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def alone(models: Sequence[Path], options: Sequence[str]) -> dict[tuple[str, int], str]:
    """The answers of each by itself."""
    found = {}
    for path in models:
        with served([path], options) as (_, url):
            for number in range(2 * len(QUESTIONS)):
                found[path.stem, number] = ask(url, body(path.stem, number))
    return found


def alternate(
    url: str, expected: dict[tuple[str, int], str], seconds: float, clients: int
) -> Found:
    """Have clients ask one model after the other, and compare."""
    found, lock, names = Found(), threading.Lock(), sorted({name for name, _ in expected})
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        turn = number
        # Each begins with another model, and asks every one at least once.
        while time.monotonic() < end or turn < number + len(names):
            name, which = names[turn % len(names)], turn % (2 * len(QUESTIONS))
            stream, turn = turn % 3 == 0, turn + 1
            started = time.monotonic()
            try:
                text = ask(url, body(name, which, stream=stream))
                error = None
            except (OSError, ValueError, KeyError) as failed:
                detail = (
                    failed.read().decode() if isinstance(failed, urllib.error.HTTPError) else ""
                )
                text, error = "", f"{failed} {detail}"
            with lock:
                found.requests += 1
                if error is not None:
                    found.errors.append(error)
                elif text != expected[name, which]:
                    found.different.append(f"{name} {which}: {text!r}")
                found.seconds.setdefault(name, []).append(time.monotonic() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def full_bytes(path: Path, options: Sequence[str]) -> int:
    """What a model takes with all its weights, as its curve says."""
    from strata.server.fleet.helper import describe as described

    context = int(options[options.index("--context") + 1])
    asked = {"model": str(path), "context": context, "parallel": 2, "threads": None}
    curve = described({**asked, "kv_type": None, "draft": "auto"}, 0)["curve"]
    return int(curve[-1][0])


def run(models: Sequence[Path], seconds: float, clients: int, options: Sequence[str]) -> Any:
    """All of it, as the JSON has it."""
    expected = alone(models, options)
    full = full_bytes(models[0], options)
    budget = FRONT_BYTES + full * 3 // 2
    with group(budget) as made:
        with served(models, [*options, "--memory", str(budget)], made) as (process, url):
            found = alternate(url, expected, seconds, clients)
            ended = process.poll()
            with urllib.request.urlopen(f"{url}/memory") as answer:
                shares = json.load(answer)["models"]
        peak, kills = made.peak, made.kills
    return {
        "budget": budget,
        "full_bytes_of_one": full,
        "shares_at_the_end": shares,
        "cgroup_peak": peak,
        "kills": kills,
        "server_ended": ended,
        "seconds": seconds,
        "clients": clients,
        "requests": found.requests,
        "errors": found.errors[:20],
        "different": found.different[:20],
        "answer_s": {
            name: {"first": each[0], "median": median(each), "most": max(each[1:] or each)}
            for name, each in found.seconds.items()
        },
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="llama-3.2-1b")
    parser.add_argument("--recipe", default="Q4_0")
    parser.add_argument("--models", nargs=2, type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    options = ["--context", "1024", "--parallel", "2", "--threads", str(chosen.threads)]
    with tempfile.TemporaryDirectory() as folder:
        models = chosen.models
        if models is None:
            with open_model(resolve("smollm2")) as file:
                tokenizer = dict(file.metadata)
            models = [Path(folder) / f"model-{seed}.gguf" for seed in (1, 2)]
            for seed, path in enumerate(models):
                write_model(
                    SHAPES[chosen.shape], path, recipe=chosen.recipe, tokenizer=tokenizer, seed=seed
                )
        result = run(models, chosen.seconds, chosen.clients, options)
    what = {"shape": chosen.shape, "recipe": chosen.recipe}
    if chosen.models is not None:
        what = {"models": [path.name for path in chosen.models]}
    told = {"machine": describe(), **what, **result}
    text = json.dumps(told, indent=1)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    wrong = result["errors"] or result["different"] or result["kills"]
    if wrong or result["server_ended"] is not None or result["cgroup_peak"] > result["budget"]:
        raise SystemExit("it does not hold")


if __name__ == "__main__":
    main()
