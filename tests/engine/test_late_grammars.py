"""What a grammar allows may be known late: who obeys none does not wait for it, and no bit of an
answer depends on it."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.decode import SamplingParams
from strata.decode.suffix import SuffixProposer
from strata.engine import Request
from strata.engine.drafting import Drafting
from support.fake_model import STATES, VOCABULARY, fake_engine


class Late:
    """A grammar and a place in it, at which some tokens may come next by what came before. Only
    after some looks it is known which."""

    def __init__(self, rng: random.Random, looks: int, before: int = 0) -> None:
        self.rng, self.looks, self.before = rng, looks, before
        self.waited_for: list[int] = []
        self._ask()

    def _ask(self) -> None:
        self.left = self.rng.randint(0, self.looks)

    def start(self) -> Late:
        return self

    def ready(self, seconds: float = 0.0) -> bool:
        self.left -= self.left > 0
        return not self.left

    def allowed(self) -> NDArray[np.bool_]:
        if self.left:
            self.waited_for.append(self.before)
        found = np.zeros(VOCABULARY, np.bool_)
        found[self.before % 5 :: 3] = True
        return found

    def forced(self) -> tuple[int, ...]:
        if self.left:
            self.waited_for.append(self.before)
        return ()

    def accept(self, token: int) -> None:
        self.before += token
        self._ask()

    def copy(self) -> Late:
        other = Late(self.rng, self.looks, self.before)
        other.waited_for = self.waited_for
        return other

    def close(self) -> None:
        pass


def tokens_of(request: Request) -> list[int]:
    return [sample.token for sample in request.output]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return [random.Random(seed + n).randrange(VOCABULARY) for n in range(length)]


def obeying(grammar: Late) -> SamplingParams:
    return SamplingParams(max_tokens=30, grammar=cast(Any, grammar))


def answer_alone(state: str, prompt: list[int]) -> list[int]:
    engine = fake_engine(state=STATES[state])
    request = engine.submit(prompt, obeying(Late(random.Random(0), 0)))
    while engine.busy:
        engine.step()
    return tokens_of(request)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("looks", [0, 1, 5])
def test_nobody_waits_and_answers_are_the_same(state: str, drafts: bool, looks: int) -> None:
    engine = fake_engine(state=STATES[state], parallel=3, token_budget=24)
    if drafts:
        # A text that repeats itself is guessed.
        recurrent = any(group.recurrent for group in engine.runner.model.groups)
        engine.drafting = Drafting(SuffixProposer(), recurrent=recurrent)
    quiet = engine.submit(prompt_of(3, 7), SamplingParams(max_tokens=150))
    prompts = [prompt_of(70), prompt_of(9, 1)]
    grammars = [Late(random.Random(seed), looks) for seed in range(2)]
    late = [engine.submit(p, obeying(g)) for p, g in zip(prompts, grammars, strict=True)]
    while not all(request.done for request in late):
        had = len(quiet.output)
        engine.step()
        engine.check_integrity()
        assert not quiet.done
        assert len(quiet.output) > had
    assert not any(grammar.waited_for for grammar in grammars)
    assert [tokens_of(r) for r in late] == [answer_alone(state, p) for p in prompts]
    engine.cancel(quiet)


def test_who_obeys_too_waits() -> None:
    """Among themselves they go on together, step by step."""
    engine = fake_engine(parallel=2, token_budget=96)
    grammars = [Late(random.Random(seed), 5) for seed in range(2)]
    requests = [engine.submit(prompt_of(9, n), obeying(g)) for n, g in enumerate(grammars)]
    steps = 0
    while engine.busy:
        engine.step()
        steps += 1
    assert steps == 30
    assert all(grammar.waited_for for grammar in grammars)
    assert [len(tokens_of(request)) for request in requests] == [30, 30]


def test_steps_that_came_to_nothing_do_not_count() -> None:
    engine = fake_engine(parallel=2)
    engine.submit(prompt_of(3), SamplingParams(max_tokens=100))
    late = engine.submit(prompt_of(5, 1), obeying(Late(random.Random(1), 4)))
    while not late.done:
        engine.step()
    # Its last token was chosen, and goes nowhere; that of the other will.
    status = engine.status()
    done = sum(engine.computed(r) for r in engine._requests.values())
    assert status.tokens == done + 5 + 30 - 1
