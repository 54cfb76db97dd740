"""Guessing tokens ahead (`--draft auto`) beside not guessing, over a table of workloads.

    python bench/speculation.py [--pairs N] [--tokens N] [--seconds S] [--only WORD] [--out FILE]
                                [--resume] [--draft KIND]

SmolLM2 and small shapes of `strata synth`, resident and streamed; texts in which nothing can be
looked up (random tokens, sampled hot), prose, code to edit, a text to repeat in part, and one that
repeats itself; 1, 4 and 16 requests. A workload's model is loaded once, by its Plan with guesses,
and two engines over the same weights answer the same prompts, step by step in turns, so that what
else the machine does falls on both; of mixtures one after the other, since the second one would
find each step's experts in the cache. Who begins changes from pair to pair, and each pair has
prompts of its own, since what was answered before may be looked up. The answers' tokens have to be
the same. ``ratio`` is tok/s of auto over that of off, counted from where the prompts were computed
once and are found again, and ``interval`` that of the median pair (95 %, bootstrap). ``plan_ratio``
is the predicted speed of the Plan that sets memory aside for guesses, without guessing, over that
of the Plan that does not; ``step_s`` is what steps of so many rows were found to take. ``--resume``
goes on with the workloads that FILE does not have yet; some fifteen seconds each, and the shapes
are written first. ``--draft ngram`` looks in each request's own text alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from machine import describe
from strata import LLM, SamplingParams
from strata.backends.registry import backend_class
from strata.engine import Engine
from strata.engine.drafting import Drafting
from strata.engine.request import Request
from strata.engine.runtime import base_memory, make_plan
from strata.errors import StrataError
from strata.machine import constants
from strata.plan import Workload

ROOT = Path(__file__).resolve().parent.parent

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
PROSE = SamplingParams(temperature=0.8, top_p=0.95, ignore_eos=True, seed=3)
HOSTILE = SamplingParams(temperature=3.0, ignore_eos=True, seed=5)
"""So hot that hardly a token follows from those before."""

TOPICS = [
    "a lighthouse",
    "the first snow",
    "two brothers",
    "an old clock",
    "a train at night",
    "a lost map",
    "the market",
    "a violin",
    "a garden in spring",
    "the sea",
    "a letter",
    "winter in a city",
    "a blacksmith",
    "bees",
    "a desert road",
    "the mountain hut",
    "a red kite",
    "an empty theatre",
    "bread",
    "a bridge",
]


CONTEXT, PIECE = 640, 400
"""Tokens of a prompt and its answer, and of a text in a prompt, at most."""


@dataclass(frozen=True)
class Case:
    """A workload: ``model`` is a reference or ``SHAPE:QUANT:LAYERS`` of synth, ``memory`` MB."""

    model: str
    memory: int | None
    kind: str
    requests: int

    @property
    def name(self) -> str:
        """As it is called in the table."""
        where = "resident" if self.memory is None else f"{self.memory}MB"
        return f"{self.model} {where} {self.kind} x{self.requests}"


LLAMA, MIXTURE, DELTA = "llama-3.2-1b:Q4_K_M:3", "lfm2-8b-a1b:Q4_K_M:4", "qwen3.5-0.8b:Q4_K_M:8"

CASES = [
    *(Case("smollm2", None, kind, n) for n in (1, 4, 16) for kind in ("hostile", "code", "repeat")),
    *(Case("smollm2", None, kind, 1) for kind in ("prose", "summary")),
    *(Case("smollm2", 120, kind, n) for n in (1, 4) for kind in ("hostile", "code", "repeat")),
    *(Case("smollm2", 120, kind, 1) for kind in ("prose", "summary")),
    *(Case("smollm2", 200, kind, 16) for kind in ("hostile", "code", "repeat")),
    *(Case(LLAMA, 340, kind, 1) for kind in ("hostile", "repeat")),
    Case(LLAMA, 340, "hostile", 16),
    *(Case(MIXTURE, 700, kind, 1) for kind in ("hostile", "repeat")),
    Case(MIXTURE, 700, "hostile", 4),
    *(Case(DELTA, None, kind, 1) for kind in ("hostile", "repeat")),
]


def functions() -> list[str]:
    """Pieces of this repository's own code, sixteen lines each."""
    lines: list[str] = []
    for path in sorted((ROOT / "src/strata").glob("*/*.py")):
        lines += path.read_text().splitlines()[12:]
    return ["\n".join(lines[at : at + 16]) for at in range(0, len(lines) - 16, 16)]


def paragraphs() -> list[str]:
    """Paragraphs of this repository's documentation."""
    text = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    found = [" ".join(part.split()) for part in text.split("\n\n")]
    return [part[:900] for part in found if len(part) > 400]


def prompt(llm: LLM, kind: str, number: int) -> list[int]:
    """Tokens of prompt ``number`` of a kind."""
    tokenizer = llm.tokenizer
    if kind == "hostile":
        random = np.random.default_rng(number)
        return [int(id) for id in random.permutation(llm.model.vocab_size)[:48]]
    if kind == "repeat":
        topic = TOPICS[number % len(TOPICS)]
        text = f"{number}: {topic}, {topic} and {topic}. " * 12
        return tokenizer.encode(text)
    if kind == "prose":
        asked = f"Write a story about {TOPICS[number % len(TOPICS)]}, number {number}."
    elif kind == "code":
        # Tables have lines of many more tokens than functions.
        pieces = [piece for piece in functions() if len(tokenizer.encode(piece)) <= PIECE]
        piece = pieces[number % len(pieces)]
        asked = f"Rename `params` to `settings` in this code and give all of it:\n{piece}"
    else:
        pieces = paragraphs()
        asked = f"Give the first half of this text word by word:\n{pieces[number % len(pieces)]}"
    chat = [{"role": "user", "content": asked}]
    return tokenizer.encode(tokenizer.apply_chat_template(chat), parse_special=True)


class Side:
    """One of the two: an engine over the weights that both use, and what its steps took."""

    def __init__(self, llm: LLM, drafting: Drafting | None) -> None:
        own = llm.engine
        self.engine = Engine(
            own.runner,
            context=own.context,
            parallel=own.parallel,
            token_budget=own.token_budget,
            prefill_budget=() if llm.plan is None else llm.plan.prefill_budget,
            drafting=drafting,
        )
        self.llm = llm
        self.seconds, self.steps, self.tokens, self.read, self.slowest = 0.0, 0, 0, 0, 0.0
        self.requests: list[Request] = []

    @property
    def given(self) -> int:
        """Tokens of all answers so far."""
        return sum(len(r.output) for r in self.requests)

    def ask(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """Begin to answer; of the prompts only the last tokens are left to be computed."""
        for prompt in prompts:
            self.engine.submit(prompt, replace(params, max_tokens=1))
        while self.engine.busy:
            self.engine.step()
        self.requests = [self.engine.submit(p, params) for p in prompts]

    def step(self) -> float:
        """Go on by a step, and what it took."""
        had, read = self.given, self.llm.runtime.backend.stats().from_disk
        began = time.perf_counter()
        self.engine.step()
        took = time.perf_counter() - began
        self.seconds, self.slowest = self.seconds + took, max(self.slowest, took)
        self.steps, self.tokens = self.steps + 1, self.tokens + self.given - had
        self.read += self.llm.runtime.backend.stats().from_disk - read
        return took


def compared(
    off: Side,
    auto: Side,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    auto_first: bool,
) -> float:
    """The same prompts by both, step by step in turns; tok/s of auto over those of off."""
    sides, before = (off, auto), [(s.seconds, s.tokens) for s in (off, auto)]
    for side in sides:
        side.ask(prompts, params)
    order = sides[::-1] if auto_first else sides
    while busy := [side for side in order if side.engine.busy]:
        if any(unit.reads == "routed" for s in off.llm.model.segments for unit in s.units):
            # Who comes second would find the experts that the first one has just read.
            busy[0].step()
        else:
            # Who is behind, so that both are at the same place of the answers.
            min(busy, key=lambda side: side.given).step()
    answers = [[[s.token for s in r.output] for r in side.requests] for side in sides]
    assert answers[0] == answers[1], "guesses changed an answer"
    each = [
        (side.seconds - s) / (side.tokens - n) for side, (s, n) in zip(sides, before, strict=True)
    ]
    return each[0] / each[1]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """What holds the median with 95 %."""
    random = np.random.default_rng(0)
    drawn = random.choice(np.array(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def predicted(llm: LLM) -> float | None:
    """Speed of the Plan with guesses over that without, were nothing guessed."""
    runtime = llm.runtime
    if llm.plan is None or runtime.machine is None:
        return None
    options = replace(runtime.options, draft="off")
    kind, taken = backend_class(options.backend), runtime.tokenizer_bytes
    without = make_plan(runtime.file, llm.model, runtime.machine, options, kind, taken)
    return llm.plan.predicted.decode_tok_s / without.predicted.decode_tok_s


def run_case(
    case: Case, model: str, pairs: int, tokens: int, seconds: float, draft: str
) -> dict[str, Any]:
    """One workload: pairs until there are enough, or no time is left."""
    size = max(8, tokens if case.requests == 1 else 2 * tokens // min(case.requests, 8))
    params = {"hostile": HOSTILE, "prose": PROSE}.get(case.kind, GREEDY)
    params = SamplingParams(**{**params.__dict__, "max_tokens": size})
    # What this process takes for the benchmark is beside the budget.
    beside = max(0, base_memory(planned=True) - constants.PROCESS)
    workload = Workload(prompt_tokens=320, answer_tokens=size)
    options: dict[str, Any] = {
        "parallel": case.requests,
        "context": CONTEXT,
        "draft": draft,
        "workload": workload,
        "memory": None if case.memory is None else case.memory * 10**6 + beside,
    }
    with LLM(model, **options) as llm:
        said: dict[str, Any] = {"name": case.name, "guesses": llm.engine.drafting is not None}
        if llm.engine.drafting is None:
            return said
        # The other engine's KV is beside the budget.
        llm.ledger.budget = None
        off, auto = Side(llm, None), Side(llm, llm.engine.drafting)
        first, ratios = 1000 * CASES.index(case), list[float]()
        until = time.monotonic() + seconds
        for pair in range(pairs):
            if pair >= 2 and time.monotonic() > until:
                break
            numbers = range(first + pair * case.requests, first + (pair + 1) * case.requests)
            prompts = [prompt(llm, case.kind, n) for n in numbers]
            ratios.append(compared(off, auto, prompts, params, auto_first=pair % 2 == 1))
        totals, costs = llm.engine.drafting.totals, llm.engine.drafting.costs
        assert costs is not None
        said |= {
            "ratio": off.seconds / off.tokens / (auto.seconds / auto.tokens),
            "interval": interval(ratios),
            "ratios": ratios,
            "guessed": totals.drafted,
            "kept": totals.kept,
            "acceptance": totals.kept / totals.drafted if totals.drafted else None,
            "saved_s": totals.saved_s,
            "step_s": {rows: costs.seconds(rows) for rows in (1, 2, 4, 8, 16, 32, 47)},
            "plan_ratio": predicted(llm),
        }
        for name, side in {"off": off, "auto": auto}.items():
            said[name] = {
                "tok_s": side.tokens / side.seconds,
                "tokens_per_sweep": side.tokens / side.steps,
                "bytes_per_token": side.read / side.tokens,
                "slowest_step_s": side.slowest,
            }
        del off, auto
    return said


def made(model: str, folder: Path) -> str:
    """The file of a shape, written if it is not there; a reference as it is."""
    if ":" not in model:
        return model
    shape, quant, layers = model.split(":")
    path = folder / f"{shape}-{quant}-{layers}.gguf"
    if not path.exists():
        command = [sys.executable, "-m", "strata", "synth", f"{shape}:{quant}", str(path)]
        subprocess.run([*command, "--layers", layers, "--quiet"], check=True)
    return str(path)


def alone(case: Case, model: str, given: argparse.Namespace) -> dict[str, Any]:
    """A workload in a process of its own, so that none is measured beside another's memory."""
    numbers = [str(x) for x in (CASES.index(case), given.pairs, given.tokens, given.seconds)]
    command = [sys.executable, __file__, "--case", model, *numbers, given.draft]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = done.stderr.strip()[-400:] or f"ended with {done.returncode}"
        return {"name": case.name, "error": error}
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def in_this_process(
    model: str, number: str, pairs: str, tokens: str, seconds: str, draft: str
) -> None:
    """Print what a workload came to."""
    case = CASES[int(number)]
    try:
        said = run_case(case, model, int(pairs), int(tokens), float(seconds), draft)
    except StrataError as error:
        said = {"name": case.name, "error": str(error)}
    print(json.dumps(said))


def main() -> None:
    """Run the table, and write after each workload what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8, help="pairs of each workload at most")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--seconds", type=float, default=16.0, help="of a workload's pairs")
    parser.add_argument("--draft", choices=["auto", "suffix", "ngram"], default="auto")
    parser.add_argument("--only", default="", help="workloads whose name has this in it")
    parser.add_argument("--folder", type=Path, help="where synthetic models are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="leave out what --out has already")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": describe(), "draft": given.draft, "workloads": []}
    if given.resume and given.out is not None and given.out.exists():
        before = json.loads(given.out.read_text())
        same = ("cpu", "affinity", "isas", "commit")
        if before["draft"] != given.draft or any(
            before["machine"][key] != found["machine"][key] for key in same
        ):
            raise SystemExit(f"{given.out} was measured on another machine, or by other code")
        found = before
    done = {said["name"] for said in found["workloads"] if "error" not in said}
    found["workloads"] = [said for said in found["workloads"] if said["name"] in done]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if given.only not in case.name or case.name in done:
                continue
            said = alone(case, made(case.model, folder), given)
            found["workloads"].append(said)
            print(line(said), flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(found, indent=1) + "\n")


def line(said: dict[str, Any]) -> str:
    """A workload in a line."""
    if "ratio" not in said:
        return f"{said['name']:45} {said.get('error', 'nothing is guessed')}"
    low, high = said["interval"]
    acceptance = said["acceptance"]
    return (
        f"{said['name']:45} {said['ratio']:5.2f}x [{low:4.2f}, {high:4.2f}]  "
        f"{said['off']['tok_s']:7.1f} -> {said['auto']['tok_s']:7.1f} tok/s  "
        f"{said['auto']['tokens_per_sweep'] / said['off']['tokens_per_sweep']:4.2f} sweeps  "
        f"{said['guessed']:5d} guessed, "
        f"{'none' if acceptance is None else f'{100 * acceptance:.0f} %'} kept"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        in_this_process(*sys.argv[2:])
    else:
        main()
