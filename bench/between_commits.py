"""Speeds of two commits, installed in two environments: paired, in turns, as one JSON object.

    python bench/between_commits.py --before OLD/bin/python --after NEW/bin/python \\
        --streamed FILE.gguf > result.json

This script runs in an environment that has the package of its own commit and the ``test`` extra;
OLD and NEW need no more than the package with the ``server`` extra. Decode, prefill, depth and
sequences are measured in two processes that live side by side (speed_side.py) and take turns of a
second or less, so that both see the same moments of a machine whose pace changes; streaming and the
server (`strata bench`, `strata serve`) are started anew each round. The first of a round is before
in even rounds and after in odd ones (A B B A); ratios (after / before: of tok_s more is better, of
_ms and _bytes less) are formed round by round. FILE is for the work ``streaming`` and is written
(SHAPE with random weights) if it is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import speed_side
from against_llama_server import LENGTHS, figures, free_port, load, ours, serving
from against_llamacpp import run
from machine import commit_of, describe
from streaming import forget

HERE = Path(__file__).parent
SIDES = ("before", "after")
SHAPE, QUANT = "llama-3.2-1b", "Q4_K_M"
ABOUT = """
import importlib.metadata, json
try:
    found = importlib.metadata.distribution("strata-llm")
except importlib.metadata.PackageNotFoundError:  # as it was named at first
    found = importlib.metadata.distribution("strata")
source = json.loads(found.read_text("direct_url.json") or "{}")
print(json.dumps({"version": found.version, "source": source}))
"""

Values = Mapping[str, float]
Round = Mapping[str, Values]


@dataclass(frozen=True)
class Settings:
    """What all works share."""

    model: str
    streamed: Path | None
    memory: str
    threads: int
    repeat: int
    clients: int
    requests: int


Work = Callable[[str, Settings], Values]


def about(python: str) -> dict[str, Any]:
    """Version and commit of the package that an interpreter has; the commit None if unknown.

    For a package installed from a folder it is the commit that is checked out there now.
    """
    said = json.loads(run([python, "-c", ABOUT]).out)
    source = said["source"]
    commit = source.get("vcs_info", {}).get("commit_id")
    if commit is None and "dir_info" in source:
        commit = commit_of(Path(unquote(urlsplit(source["url"]).path)))
    return {"version": said["version"], "commit": commit}


def bench(python: str, model: object, s: Settings, *options: object) -> dict[str, float]:
    """`strata bench`: what it measured, and the most memory that the process held."""
    command = [python, "-m", "strata", "bench", model, "--json", "--quiet", *options]
    done = run([*command, "--threads", s.threads, "--repeat", s.repeat])
    said = json.loads(done.out)
    speeds = {name: said[name] for name in ("prefill_tok_s", "decode_tok_s") if said[name]}
    return {**speeds, "peak_bytes": float(done.peak_bytes)}


def probe(python: str, *place: object) -> None:
    """Measure the machine, of which only one side's rates are remembered; otherwise it would be
    done in the process that is measured."""
    run([python, "-m", "strata", "probe", *place, "--refresh", "--quiet"])


def streaming(python: str, s: Settings) -> Values:
    """A model larger than its budget, of which the page cache has nothing."""
    probe(python, s.streamed)
    forget(s.streamed)
    return bench(python, s.streamed, s, "--prompt", 128, "--gen", 8, "--memory", s.memory)


def server(python: str, s: Settings) -> Values:
    """Clients that stream answers from `strata serve`."""
    probe(python)
    args = argparse.Namespace(
        **{"threads": s.threads, "context": 2048, "strata_options": ""},
        **{"words": LENGTHS, "requests": s.requests, "gen": 64},
    )
    port = free_port()
    command = ours(s.model, s.clients, args, port, python)
    with serving(command, port, os.sched_getaffinity(0)) as url:
        found = figures(asyncio.run(load(url, s.clients, args)))
    return {k: v for k, v in found.items() if k.endswith(("tok_s", "_ms"))}


ANEW: dict[str, Work] = {work.__name__: work for work in (streaming, server)}
WORKS = (*speed_side.WORKS, *ANEW)


def in_turns(count: int, measure: Callable[[str], Values]) -> list[Round]:
    """Rounds of ``measure(side)`` of both sides: A B, B A, A B, ..."""
    rounds: list[Round] = []
    for i in range(count):
        order = SIDES if i % 2 == 0 else SIDES[::-1]
        rounds.append({side: measure(side) for side in order})
    return rounds


@dataclass
class Living:
    """A process that measures when it is told to."""

    process: subprocess.Popen[str]

    def measure(self) -> Values:
        """Once more."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._said()

    def end(self) -> Values:
        """What it held at most."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        said = self._said()
        self.process.wait()
        return said

    def _said(self) -> Values:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with exit code {self.process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def living(python: str, work: str, s: Settings) -> Iterator[Living]:
    """A side that holds the model until the end."""
    probe(python)
    command = [python, HERE / "speed_side.py", s.model, "--work", work, "--threads", s.threads]
    with subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Living(process)
        finally:
            process.kill()


def side_by_side(pythons: Mapping[str, str], work: str, s: Settings, count: int) -> list[Round]:
    """Rounds of a work whose two processes live at the same time."""
    with ExitStack() as stack:
        sides = {side: stack.enter_context(living(pythons[side], work, s)) for side in SIDES}
        rounds = in_turns(count, lambda side: sides[side].measure())
        peaks = {side: sides[side].end() for side in SIDES}
    return [{side: {**r[side], **peaks[side]} for side in SIDES} for r in rounds]


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Of each value medians of the sides, and the ratio's median, quartiles and ends."""
    found = {}
    for name in rounds[0]["before"]:
        ratios = [r["after"][name] / r["before"][name] for r in rounds]
        found[name] = {side: statistics.median(r[side][name] for r in rounds) for side in SIDES}
        found[name] |= {
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2]
            if len(ratios) > 1
            else ratios * 2,
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return found


def write_streamed(path: Path) -> None:
    """A model whose weights are random, unless it is there."""
    if not path.exists():
        run([sys.executable, "-m", "strata", "synth", SHAPE, path, "--quant", QUANT, "--quiet"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, metavar="PYTHON")
    parser.add_argument("--after", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--works", default=",".join(WORKS), help="%(default)s")
    parser.add_argument("--model", default="smollm2", help="of all works but one (%(default)s)")
    parser.add_argument("--streamed", type=Path, metavar="FILE")
    parser.add_argument("--memory", default="512MB", help="the streaming's budget (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="of a work started anew each time")
    parser.add_argument("--turns", type=int, default=60, help="of a work side by side")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions within a stream")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2, help="of each client, in turn")
    args = parser.parse_args(argv)
    works = args.works.split(",")
    if unknown := sorted({*works} - {*WORKS}):
        parser.error(f"there is no work {unknown[0]!r}; there are {', '.join(WORKS)}")
    if "streaming" in works:
        if args.streamed is None:
            parser.error("streaming wants --streamed FILE")
        write_streamed(args.streamed)
    settings = Settings(
        args.model,
        args.streamed,
        args.memory,
        args.threads,
        args.repeat,
        args.clients,
        args.requests,
    )
    pythons = {"before": args.before, "after": args.after}
    report: dict[str, Any] = {
        "machine": describe(),
        **{side: about(python) for side, python in pythons.items()},
        "model": Path(args.model).name,
        "memory": args.memory,
        "threads": args.threads,
        "repeat": args.repeat,
        "clients": args.clients,
        "works": {},
    }

    def turn(work: Work, side: str) -> Values:
        return work(pythons[side], settings)

    for name in works:
        if name in ANEW:
            rounds = in_turns(args.rounds, partial(turn, ANEW[name]))
        else:
            rounds = side_by_side(pythons, name, settings, args.turns)
        report["works"][name] = {"summary": summary(rounds), "rounds": rounds}
        for value, row in report["works"][name]["summary"].items():
            spread = f"{row['ratio']:.3f} ({row['ratio_least']:.3f}-{row['ratio_most']:.3f})"
            sides = f"{row['before']:.4g} -> {row['after']:.4g}"
            print(f"{name:10s} {value:14s} {sides:26s} {spread}", file=sys.stderr, flush=True)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
