"""A model of few bits that guesses for the one it was made of, which streams.

    strata quantize smollm2 SMALL.gguf --bpw 2.6 --calibration TEXT
    python bench/self_drafts.py MODEL SMALL.gguf [--memory MB] [--answers N] [--tokens N] [--out F]

Prompts of ``bench/speculation.py`` (code to edit, summaries, prose), greedy. Each is answered
plainly, with words looked up in the text, and with the small model beside that, whose memory is
added to the budget; tokens a sweep and seconds a token are those of whole answers, prompts not
counted.
Then the small model is asked at each place of each answer how it goes on, and what was right of
that is *replayed*: Strata's own choice of how much to guess, with what steps of a large shape take
by its Plan and a draft of LLAMA-3.2-1B's predicted speed, whose memory is beside the budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import describe
from speculation import CONTEXT, prompt
from strata import LLM, SamplingParams
from strata.decode import NO_DRAFT, Draft, Sampler
from strata.engine import draft_model
from strata.engine.drafting import Drafting
from strata.engine.runtime import base_memory
from strata.engine.scheduler import Advance
from strata.engine.step_costs import StepCosts
from strata.machine import constants

KINDS = ("code", "summary", "prose")
DEPTH = 15
"""Tokens that are guessed at each place."""
SHAPES = (("llama-3.1-8b:Q4_K_M", "1GB"), ("llama-3.1-70b:Q4_K_M", "4GB"))
SMALL = "llama-3.2-1b:Q4_K_M"


class Nothing:
    """Looks nothing up."""

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        """See Proposer."""
        return NO_DRAFT

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """See Proposer."""


class Replayed:
    """Guesses what was recorded at each place of an answer, in a time that is given."""

    sees: tuple[int, ...] = ()
    row_s = behind_s = 0.0

    def __init__(self, drafts: Mapping[int, Draft], step_s: float) -> None:
        self._drafts = drafts
        self.step_s: float | None = step_s
        self.took_s = 0.0

    def begin(self, id: int, sampler: Sampler) -> None:
        """See Guesser."""

    def end(self, id: int) -> None:
        """See Guesser."""

    def behind(self, id: int, text: Sequence[int]) -> int:
        """See Guesser: the prompt is not counted on either side."""
        return 0

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        """See Guesser."""
        found = {id: self._drafts[len(text)].first(most[id]) for id, text in texts.items()}
        assert self.step_s is not None
        self.took_s += self.step_s * max(len(draft.tokens) for draft in found.values())
        return found

    def observe_step(
        self, advances: Sequence[Advance], chosen: Mapping[int, Sequence[int]], rows: object
    ) -> None:
        """See Guesser."""

    def check_integrity(self) -> None:
        """See Guesser."""

    def close(self) -> None:
        """See Guesser."""


def replay(recorded: Sequence[Any], rows_s: Sequence[float], step_s: float) -> dict[str, float]:
    """Tokens a sweep and times as fast as plainly, over answers [(prompt, answer, drafts)]."""
    predicted = {1 << power: row_s for power, row_s in enumerate(rows_s)}
    guessing = Drafting(Nothing(), costs=StepCosts(predicted))
    known, seconds, sweeps, tokens = StepCosts(predicted), 0.0, 0, 0
    for id, (asked, said, drafts) in enumerate(recorded):
        model = Replayed(drafts, step_s)
        guessing.model, at = model, 1
        guessing.begin(id, Sampler(SamplingParams(), asked, 1))
        guessing.learn([Advance(id, 0, (1,), 1, ())], {id: [said[0]]}, rows_s[0])
        while at < len(said):
            before, left = model.took_s, len(said) - at - 1
            text = [*asked, *said[:at]]
            draft = guessing.propose({id: text}, 1, 64, {id: left}).get(id, NO_DRAFT)
            right = len(draft.path(said[at : at + len(draft.tokens)]))
            took = known.seconds(1 + len(draft.tokens))
            advance = Advance(id, len(text) - 1, (1,), 1 + len(draft.tokens), (), draft=draft)
            guessing.learn([advance], {id: said[at : at + right + 1]}, took)
            seconds += took + model.took_s - before
            at, sweeps, tokens = at + right + 1, sweeps + 1, tokens + right + 1
        guessing.end(id, said)
    return {"tokens_per_sweep": tokens / sweeps, "speed": tokens * rows_s[0] / seconds}


def record(model: str, small: Path, prompts: Sequence[Any], tokens: int) -> list[Any]:
    """Answers in memory, and what the small model says at each place of them."""
    found = []
    with LLM(model, context=CONTEXT, draft="ngram", draft_model=str(small)) as llm:
        drafting = llm.engine.drafting
        assert drafting is not None
        guesser = drafting.model
        assert isinstance(guesser, draft_model.DraftModel)
        drafting.model = None
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        for id, asked in enumerate(prompts):
            said = list(llm.generate(asked, params).token_ids)
            guesser.begin(id, Sampler(params, asked, llm.model.vocab_size))
            drafts = {}
            for at in range(1, len(said)):
                text = [*asked, *said[:at]]
                while not (made := guesser.propose({id: text}, {id: DEPTH})):
                    pass
                drafts[len(text)] = made[id]
            guesser.end(id)
            found.append((list(asked), said, drafts))
        drafting.model = guesser
    return found


def streamed(model: str, memory: int, prompts: Any, tokens: int, **options: Any) -> dict[str, Any]:
    """Whole answers in a budget, by kind."""
    found: dict[str, Any] = {}
    beside = max(0, base_memory(planned=True) - constants.PROCESS)
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    with LLM(model, memory=memory + beside, context=CONTEXT, parallel=1, **options) as llm:
        assert llm.plan is not None
        for kind, each in prompts.items():
            seconds = given = 0.0
            before = llm.engine.status()
            for asked in each:
                timings = llm.generate(asked, params).timings
                assert timings.decode_tok_s is not None
                seconds += (tokens - 1) / timings.decode_tok_s
                given += tokens - 1
            after = llm.engine.status()
            guessed = after.draft_tokens - before.draft_tokens
            kept = after.draft_tokens_kept - before.draft_tokens_kept
            found[kind] = {
                "s_per_token": seconds / given,
                "tokens_per_sweep": given / (given - kept),
                "guessed": guessed,
                "kept": kept,
            }
        found["plan"] = {"streamed_bytes": llm.plan.predicted.sweep_bytes}
    return found


def draft_memory(model: str, small: Path) -> int:
    """Bytes that the small model takes beside the other one."""
    with LLM(model, context=CONTEXT, parallel=1, draft_model=str(small), draft="ngram") as llm:
        return llm.runtime.options.draft_model_bytes


def plan(shape: str, memory: str | None) -> dict[str, Any]:
    """What a shape's Plan predicts on this machine."""
    command = [sys.executable, "-m", "strata", "plan", shape, "--json"]
    command += [] if memory is None else ["--memory", memory]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    predicted: dict[str, Any] = said["plan"]["predicted"]
    return predicted


def main() -> None:
    """Measure, record and replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("small", type=Path)
    parser.add_argument("--memory", type=int, default=110, help="MB for the model")
    parser.add_argument("--answers", type=int, default=2, help="of each kind")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with LLM(given.model, context=CONTEXT, draft="off") as llm:
        prompts = {k: [prompt(llm, k, n) for n in range(3, 3 + given.answers)] for k in KINDS}
    said: dict[str, Any] = {
        "machine": describe(),
        "draft_bytes": given.small.stat().st_size,
        "draft_memory": draft_memory(given.model, given.small),
        "memory": given.memory,
        "tokens": given.tokens,
        "streamed": {},
        "replayed": {},
    }
    ways = {"plain": {"draft": "off"}, "lookup": {"draft": "ngram"}}
    ways["model"] = {"draft": "ngram", "draft_model": str(given.small)}
    for name, options in ways.items():
        room = given.memory * 10**6 + (said["draft_memory"] if name == "model" else 0)
        said["streamed"][name] = streamed(given.model, room, prompts, given.tokens, **options)
        print(name, said["streamed"][name], flush=True)
    step_s = 1 / plan(SMALL, None)["decode_tok_s"]
    recorded = {k: record(given.model, given.small, p, given.tokens) for k, p in prompts.items()}
    for shape, memory in SHAPES:
        rows_s = plan(shape, memory)["rows_s"]
        each = {kind: replay(found, rows_s, step_s) for kind, found in recorded.items()}
        said["replayed"][f"{shape} {memory}"] = {"step_s": rows_s, "draft_step_s": step_s, **each}
        print(shape, memory, each, flush=True)
    if given.out:
        given.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
