"""Budgets obeyed by every verb: in control groups of exactly the budget, with cold libraries.

`python bench/obeyed.py --models DIRECTORY --json out.json`; `--quick` has SmolLM2 alone, in the
smallest budgets; `--only TEXT` those cases whose name has it. What holds by `out.json` is not
measured again, so that a run can be ended at any time, also after `--seconds`, and be gone on with.

A case is a model, a command and a budget: the smallest that the command itself names when it has
none that does, and some above it. What has no budget of its own (`tokenize`) runs in the smallest
in which the model answers. Before each the interpreter's libraries, the model and the
kernel's copies of both are forgotten, so that the group is charged for them again. A case holds if
nothing was killed, the command ended as it should, and no process was ever larger than the budget;
`peak_group` counts all processes and the page cache. `server` is asked for all that its bounds
allow by eight clients at once, of an encoder too. Models with random weights are made in DIRECTORY
and stay there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pty
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from at_the_bounds import ANSWERS, LAST, OF_TEXTS, REQUESTS, ask, ask_together, encoded
from cgroups import Group, group, why_not

STRATA = (sys.executable, "-m", "strata")
MB = 10**6
NOTHING = "20MB"
TIMEOUT = 600
_NEEDS = re.compile(r"needs (\d+)MB")
_KNOWN = re.compile(r"given (\d+)MB or more, that is known")
_ENTRIES = ("Hello there.", "Tell me more. " * 40, "/clear", "And now?", "/bye")

# The shapes of random weights: sizes of vocabulary, layers and heads differ, and so do floors.
MADE = {
    "llama-3.2-1b": ("llama-3.2-1b", "Q4_K_M"),
    "qwen3-0.6b": ("qwen3-0.6b", "Q8_0"),
    "gemma-3-270m": ("gemma-3-270m", "Q4_0"),
}

ENCODER = "an encoder"
_ENCODER = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from support.encoders import encoder, words
encoder(Path(sys.argv[2]), types=1, ranks=True, **words(sys.argv[3]))
"""

SCRIPTS = (
    "The quick brown fox doesn't jump over the lazy dog; it can't be bothered. ",
    "Съешь ещё этих мягких французских булок, да выпей чаю. ",
    "今天天气很好，我们去公园散步吧。价格是多少？",
    "اللغة العربية جميلة، وتُكتب من اليمين إلى اليسار. ",
    "👩‍👩‍👧‍👦👍🏿🇩🇪🙂😀🦙",
    "SHOUTING3141592653589793238462643383279502884197169399375105820974944592",
)


def six_scripts(nbytes: int) -> str:
    """About so many bytes of UTF-8: a stretch of each script, in turns of growing length."""
    rng = random.Random(1)
    parts: list[str] = []
    size = 0
    while size < nbytes:
        for script in SCRIPTS:
            part = script * rng.choice((1, 10, 100))
            parts.append(part + rng.choice(("", "\n", " ")))
            size += len(parts[-1].encode())
    return "".join(parts)


@dataclass(frozen=True)
class Command:
    """One kind of work. ``budgeted``: it takes ``--memory``; ``text`` comes on standard input;
    ``terminal``: people type at it; ``refused``: it is to end in an error that names why."""

    name: str
    arguments: tuple[str, ...]
    budgeted: bool = True
    text: str | None = None
    terminal: bool = False
    refused: bool = False

    def words(self, model: str, memory: str) -> list[str]:
        budget = ["--memory", memory] if self.budgeted else []
        verb, *rest = (word.replace("MODEL", model) for word in self.arguments)
        return [*STRATA, verb, *rest, *budget]


def commands(texts: Path) -> list[Command]:
    """All kinds of work; the texts that they read lie in a folder."""
    million = six_scripts(1_000_000)
    (texts / "six.txt").write_text(million)
    (texts / "capitals.txt").write_text("A" * 1_000_000)
    six, capitals = str(texts / "six.txt"), str(texts / "capitals.txt")
    (texts / "lines.txt").write_text("\n".join(lines(six_scripts(20_000), 400)))
    (texts / "short.txt").write_text("\n".join(lines(six_scripts(40_000), 60)))
    of_lines, of_short = str(texts / "lines.txt"), str(texts / "short.txt")
    few = ("--max-tokens", "8", "--threads", "2")
    small, explained = ("--prompt", "200", "--gen", "8"), ("--explain", "--json")
    run = ("run", "MODEL")
    return [
        Command("run", (*run, "hi", *few, *explained)),
        Command("run long", (*run, *few, "--raw", *explained), text=SCRIPTS[0] * 180),
        Command("run six scripts", (*run, *few, "--raw", "--context", "4096"), text=million[:1000]),
        Command("run 1 MB", (*run, *few), text=million, refused=True),
        Command("run 1 MB of A", (*run, *few, "--raw"), text="A" * 1_000_000, refused=True),
        Command("chat", (*run, *few), terminal=True),
        Command("perplexity", ("perplexity", "MODEL", "--text", six, "--chunks", "2", "--json")),
        Command("bench", ("bench", "MODEL", *small, "--repeat", "1", *explained)),
        Command("plan", ("plan", "MODEL", "--json")),
        Command("tokenize", ("tokenize", "MODEL", "--file", six), budgeted=False),
        Command("tokenize json", ("tokenize", "MODEL", "--file", six, "--json"), budgeted=False),
        Command(
            "tokenize pieces",
            ("tokenize", "MODEL", "--file", six, "--json", "--pieces"),
            budgeted=False,
        ),
        Command(
            "tokenize of A", ("tokenize", "MODEL", "--file", capitals), budgeted=False, refused=True
        ),
        Command("embed", ("embed", "MODEL", "--file", of_lines, "--json")),
        Command("rank", ("rank", "MODEL", "what is a panda", "--file", of_short, "--json")),
        SERVE,
        SERVE_TEXTS,
    ]


def lines(text: str, length: int) -> list[str]:
    """A text as lines of so many characters, none of them empty."""
    some = (text[at : at + length].replace("\n", " ") for at in range(0, len(text), length))
    return [line for line in some if line.strip()]


SERVE_TEXTS = Command("serve texts", ("serve", "MODEL", "--port", "0", "--alias", "it"))
SERVE = Command(
    "serve",
    ("serve", "MODEL", "--port", "0", "--alias", "it", "--context", "2048", "--parallel", "2"),
)


@contextmanager
def standard_input(command: Command) -> Iterator[int]:
    """A descriptor from which the command's text comes, or what people type."""
    if command.terminal:
        ours, theirs = pty.openpty()

        def talk() -> None:
            with suppress(OSError):
                for entry in _ENTRIES:
                    os.write(ours, f"{entry}\n".encode())

        typing = threading.Thread(target=talk)
        typing.start()
        try:
            yield theirs
        finally:
            os.close(theirs)
            os.close(ours)
            typing.join()
        return
    with tempfile.TemporaryFile() as file:
        file.write((command.text or "").encode())
        file.seek(0)
        yield file.fileno()


def smallest(model: str, command: Command) -> int:
    """Bytes of the smallest budget of a command, by what its refusals name."""
    said = refusal(model, command, NOTHING)
    found = _NEEDS.search(said)
    if found is None:
        raise SystemExit(f"{command.name} of {model} names no budget: {said[-500:]}")
    if (enough := _KNOWN.search(said)) is not None:
        # A budget that surely does; the smallest is named where the text can be counted.
        exactly = _NEEDS.search(refusal(model, command, f"{enough[1]}MB"))
        return int((exactly or enough)[1]) * MB
    return int(found[1]) * MB


def refusal(model: str, command: Command, budget: str) -> str:
    """What a command says in a budget."""
    with standard_input(command) as stdin:
        words = command.words(model, budget)
        done = subprocess.run(words, stdin=stdin, capture_output=True, text=True, timeout=TIMEOUT)
    return done.stderr + done.stdout


@cache
def libraries() -> list[Path]:
    """The files that a process of ours maps and reads: the interpreter's and the packages'."""
    found: list[Path] = []
    for folder in {sysconfig.get_path("stdlib"), *filter(os.path.isdir, sys.path)}:
        for directory, below, names in os.walk(folder):
            # Those of another environment are none of ours.
            below[:] = [name for name in below if name not in ("site-packages", "__pycache__")]
            found += (Path(directory, name) for name in names if name.endswith((".py", ".so")))
            found += Path(directory, "__pycache__").glob("*.pyc")
    return found


def forget(paths: Iterable[Path]) -> None:
    """Drop what the page cache has of files; what others have mapped stays."""
    for path in paths:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def measure(command: Command, model: str, budget: int) -> dict[str, Any]:
    """What became of a case."""
    forget(libraries())
    forget([Path(model)])
    with group(budget) as made:
        if command in (SERVE, SERVE_TEXTS):
            row = _served(made, command, model, budget)
        else:
            row = _run(made, command, command.words(model, f"{budget}B"))
        row |= {"kills": made.kills, "peak_group": made.peak, "cached_at_end": made.cached}
    row["holds"] = not row["kills"] and row["ended_well"] and row["peak_process"] <= budget
    return row


def at_the_smallest(command: Command, model: str, answering: int) -> tuple[int, dict[str, Any]]:
    """The smallest budget of a command, or ``answering`` for one that has none of its own, and
    what became of it there."""
    if not command.budgeted or command.refused:
        return answering, measure(command, model, answering)
    floor = smallest(model, command)
    return floor, measure(command, model, floor)


# Runs a command and says how large it was: Linux counts a child when it is waited for.
_MEASURED = """
import json, os, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
size = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
open(sys.argv[1], "w").write(json.dumps([code, size * 1024]))
"""


def _run(made: Group, command: Command, words: Sequence[str]) -> dict[str, Any]:
    with standard_input(command) as stdin, tempfile.NamedTemporaryFile("r") as out:
        # The group is entered by a shell, and left out of what is measured but for its own pages.
        inner = made.entering(words)
        asked = [sys.executable, "-S", "-c", _MEASURED, out.name, *inner]
        try:
            done = subprocess.run(
                asked, stdin=stdin, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            # The group ends it.
            said = f"no end within {TIMEOUT} s"
            return {"code": None, "peak_process": 0, "ended_well": False, "said": said}
        code, size = json.loads(out.read())
    said = done.stderr.strip()
    named = "Traceback" not in said and "unexpected" not in said
    well = code in (1, 2) and "error: " in said if command.refused else code == 0
    row = {"code": code, "peak_process": size, "ended_well": named and well}
    if not (named and well) or command.refused:
        row["said"] = said[-300:]
    with suppress(ValueError, KeyError, TypeError):
        row["predicted"] = json.loads(done.stdout)["explanation"]["predicted_peak_bytes"]
    return row


def _served(made: Group, command: Command, model: str, budget: int) -> dict[str, Any]:
    process = made.start(command.words(model, f"{budget}B"))
    requests = REQUESTS if command is SERVE else OF_TEXTS
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    while lines[-1] and not lines[-1].startswith("listening at http://"):
        lines.append(process.stderr.readline())
    if not lines[-1]:
        code = process.wait()
        return {"code": code, "peak_process": 0, "ended_well": False, "said": "".join(lines)[-300:]}
    url = lines[-1].split()[2]
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    wrong: list[str] = []
    try:
        for path, body in requests:
            data = encoded(body)
            answers = ask_together(url, path, data)
            if process.poll() is not None:
                wrong.append(f"ended by {path} of {len(data)} bytes")
                break
            if not set(answers) <= ANSWERS:
                wrong.append(f"{path} of {len(data)} bytes: {answers}")
        else:
            path, body = LAST if command is SERVE else OF_TEXTS[0]
            if (last := ask(url, path, encoded(body))) != 200:
                wrong.append(f"the last one: {last}")
        peak = vm_peak(process.pid)
    finally:
        process.terminate()
        code = process.wait(60)
        drain.join()
    row = {"code": code, "peak_process": peak, "ended_well": not wrong}
    return {**row, "said": "; ".join(wrong)} if wrong else row


def vm_peak(pid: int) -> int:
    """The most bytes of a process that were ever resident; 0 for one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


Row = dict[str, Any]


def measured(
    args: argparse.Namespace, texts: Path, known: Sequence[Row], ends: float
) -> Iterator[Row]:
    """The rows of all cases that are not known, until it is to end."""
    there = {(row["model"], row["command"], row["above"]): row["budget"] for row in known}
    for name in ["smollm2"] if args.quick else ["smollm2", *MADE, ENCODER]:
        # What a text becomes is the tokenizer's business, which is the same.
        kinds = [kind for kind in commands(texts) if kind.name in _OF.get(name, _OF_OTHERS)]
        steps = [0] if args.quick else [0, 10, 60] if name == "smollm2" else [0, 40]
        answering = 0
        for kind in kinds:
            left = [step for step in steps if (name, kind.name, step) not in there]
            if not left or (args.only and args.only not in f"{name} {kind.name}"):
                continue
            path = resolved(name, args.models)
            answering = answering or smallest(path, kinds[0])
            for step in left:
                if time.monotonic() > ends:
                    return
                case = {"model": name, "command": kind.name, "above": step}
                if step == 0:
                    budget, row = at_the_smallest(kind, path, answering)
                    there[name, kind.name, 0] = budget
                else:
                    budget = there[name, kind.name, 0] + step * MB
                    row = measure(kind, path, budget)
                yield {**case, "budget": budget, **row}


_OF_OTHERS = ("run", "perplexity", "bench", "serve")
_OF_SMOLLM2 = ("run", "run long", "run six scripts", "run 1 MB", "run 1 MB of A", "chat")
_OF_SMOLLM2 += ("perplexity", "bench", "plan", "tokenize", "tokenize json", "tokenize pieces")
_OF_SMOLLM2 += ("tokenize of A", "embed", "serve")
_OF = {"smollm2": _OF_SMOLLM2, ENCODER: ("rank", "serve texts")}


def resolved(name: str, folder: Path) -> str:
    """Where a model lies; one with random weights is made."""
    if name == ENCODER:
        path = folder / "encoder.gguf"
        tests = Path(__file__).resolve().parents[1] / "tests"
        made = [sys.executable, "-c", _ENCODER, tests, path, "what is a panda " + SCRIPTS[0]]
        subprocess.run(made, check=True)
        return str(path)
    if name not in MADE:
        said = subprocess.run(
            [*STRATA, "show", name, "--json"], capture_output=True, text=True, check=True
        )
        return str(json.loads(said.stdout)["files"][0]["path"])
    shape, recipe = MADE[name]
    path = folder / f"{name}.gguf"
    if not path.exists():
        subprocess.run([*STRATA, "synth", shape, str(path), "--quant", recipe, "-q"], check=True)
    return str(path)


def line(row: dict[str, Any]) -> str:
    start = f"{row['model']:14s} {row['command']:16s} {row['budget'] / MB:6.0f} MB"
    sizes = f"process {row['peak_process'] / MB:6.1f} MB, group {row['peak_group'] / MB:6.1f} MB"
    said = f"  {row['said']}" if "said" in row and not row["holds"] else ""
    return f"{start}  {sizes}  {'holds' if row['holds'] else 'DOES NOT HOLD'}{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, help="begin no case after so many")
    parser.add_argument("--note", help="what else the machine did")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    machine = described()
    rows: list[Row] = []
    if args.json and args.json.exists():
        rows = [row for row in json.loads(args.json.read_text())["rows"] if row["holds"]]
    before = len(rows)
    ends = time.monotonic() + args.seconds if args.seconds else math.inf
    with tempfile.TemporaryDirectory() as texts:
        for row in measured(args, Path(texts), rows, ends):
            rows.append({**row, "commit": machine["commit"]})
            print(line(row), file=sys.stderr, flush=True)
            if args.json:
                whole = {"machine": machine, "note": args.note, **summary(rows), "rows": rows}
                args.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps({**summary(rows), "measured now": len(rows) - before}))
    raise SystemExit(summary(rows)["hold"] < len(rows))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "cases": len(rows),
        "hold": sum(row["holds"] for row in rows),
        "kills": sum(row["kills"] for row in rows),
        "above_budget": sum(row["peak_process"] > row["budget"] for row in rows),
    }


def described() -> Any:
    """What is said of the machine, by another process: what that imports would be mapped here, and
    warm for everybody."""
    code = "import json, sys, machine; sys.argv[0] = sys.argv.pop(1); "
    code += "print(json.dumps(machine.describe()))"
    command = [sys.executable, "-c", code, *sys.argv]
    folder = Path(__file__).resolve().parent
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    main()
